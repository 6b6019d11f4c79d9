"""The code that a function reaches in its own and other modules, by syntax: a digest that no comment changes.

A module is a list of statements. Some only bind names: functions, classes, imports, constants. They count if one of
their names is reached from the function, directly or through other code, in its own module and in those that it
imports. All other statements of these modules have effects on import, and always count. So comments, docstrings, layout
and a second function next to the first do not change the digest.

Names that are looked up as text (`globals()`, `eval`, subclasses that register themselves) can be any name: if code
that is reached does so, all of the modules count. Imports under a name that is computed during the run are found only
during the run (`raysat.user_code.identity`).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

LOOKUPS = {("globals",), ("locals",), ("vars",), ("eval",), ("exec",), ("__import__",), ("sys", "modules")}
"""Expressions of code that looks up names given as text."""

_LOOKING = {"__subclasses__", "__init_subclass__", "getmembers", "__globals__", "f_globals"}

_BUILT_IN_DECORATORS = {"staticmethod", "classmethod", "property"}


@dataclass(frozen=True)
class Import:
    """A name that an import statement binds.

    Attributes:
        name: The name; `*` for all names, empty for none.
        module: The imported module.
        attribute: The attribute of it that is bound, which may be a module too; empty for the module itself.
    """

    name: str
    module: str
    attribute: str = ""


@dataclass(frozen=True, eq=False)
class Statement:
    """A statement of a module.

    Attributes:
        node: Its syntax.
        package: The package to which relative imports refer.
        binds: The names that it binds.
        acts: Whether it may do more than bind names.
        documented: Whether docstrings count, because the module uses `__doc__`.
    """

    node: ast.stmt
    package: str
    binds: frozenset[str]
    acts: bool
    documented: bool

    @cached_property
    def text(self) -> str:
        """Its syntax as text."""
        return _text(self.node, self.documented)

    @cached_property
    def uses(self) -> frozenset[tuple[str, ...]]:
        """The names that it uses, each with the attributes after it: `a.b.c` as `("a", "b", "c")`."""
        return frozenset(_uses(self.node))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """Its imports, at any depth."""
        return tuple(_imports(self.node, self.package))

    @property
    def is_import(self) -> bool:
        """Whether it is itself an import, rather than, say, a function that contains one."""
        return isinstance(self.node, ast.Import | ast.ImportFrom)

    @property
    def looks_up(self) -> bool:
        """Whether it may look up names given as text."""
        defined = {node.name for node in ast.walk(self.node) if isinstance(node, ast.FunctionDef)}
        made = any(isinstance(node, ast.ClassDef) and node.keywords for node in ast.walk(self.node))
        found = LOOKUPS & {chain[:k] for chain in self.uses for k in (1, 2)}
        renamed = any(one.module in ("sys", "builtins") and one.name != one.module for one in self.imports)
        return made or renamed or bool(found) or any(_LOOKING & {*defined, *chain} for chain in self.uses)

    @cached_property
    def shows(self) -> frozenset[str]:
        """The names of imports inside it that code elsewhere may use: those of the module, and of classes."""
        return frozenset(_shown(self.node, False))

    @property
    def imports_any(self) -> bool:
        """Whether it imports a module whose name is computed during the run."""
        calls = (node for node in ast.walk(self.node) if isinstance(node, ast.Call) and _is_import_module(node.func))
        return any(not (call.args and isinstance(call.args[0], ast.Constant)) for call in calls)


def digest(text: str) -> str:
    """The digest of a whole module."""
    return _hash(statement.text for statement in statements("", text))


def digests(references: Iterable[str], texts: Mapping[str, str], packages: Collection[str], *, deep: bool) -> dict:
    """The digest of what functions reach in each module that is imported for them.

    Args:
        references: Import paths `module:function`.
        texts: The modules' texts by name; modules not among them are not followed.
        packages: Those of them that are packages.
        deep: Whether imports inside functions are followed, which happen only when these are called.
    """
    walk = _Walk(texts, packages, deep)
    for reference in references:
        module, _, name = reference.partition(":")
        walk.execute(module)
        walk.reach(module, (name,))
    walk.run()
    return {name: _hash(one.text for one in of if one in walk.reached) for name, of in walk.modules.items()}


class _Walk:
    """A walk from function to function, through the modules."""

    def __init__(self, texts: Mapping[str, str], packages: Collection[str], deep: bool) -> None:
        self.texts, self.packages, self.deep = texts, packages, deep
        self.modules: dict[str, tuple[Statement, ...]] = {}
        self.reached: set[Statement] = set()
        self.waiting: list[tuple[str, Statement]] = []
        self.seen: set[tuple[str, tuple[str, ...]]] = set()
        self.wholes: set[str] = set()
        self.everything = False
        self.anything: set[str] = set()
        """The modules that import computed names; an empty string for one that may import itself."""

    def run(self) -> None:
        """Follow all statements that were reached, until there are no new ones."""
        while self.waiting:
            module, statement = self.waiting.pop()
            self._follow(module, statement)
            if self.everything or self.anything:  # in every round, for modules reached since
                for name in list(self.modules):
                    if self.everything or self.anything != {name}:
                        self.whole(name)

    def execute(self, module: str) -> None:
        """Count a module as imported, and before it the packages that contain it."""
        parts = module.split(".")
        for k in range(len(parts)):
            name = ".".join(parts[: k + 1])
            if name not in self.texts or name in self.modules:
                continue
            package = name if name in self.packages else name.rpartition(".")[0]
            self.modules[name] = statements(package, self.texts[name])
            for statement in self.modules[name]:
                if statement.acts:
                    self._add(name, statement)
                elif statement.is_import:
                    for one in statement.imports:
                        self._execute(one)

    def whole(self, module: str) -> None:
        """Count all of a module, and what it imports at its top level."""
        self.execute(module)
        if module in self.wholes:  # modules may import each other
            return
        self.wholes.add(module)
        for statement in self.modules.get(module, ()):
            self._add(module, statement)
            for one in statement.imports if statement.is_import else ():
                self.reach(one.module, (one.attribute,) if one.attribute else ())

    def reach(self, module: str, chain: tuple[str, ...]) -> None:
        """Count what a module has under a name; if it has no such name, count all of it."""
        if (module, chain) in self.seen:  # modules may import each other
            return
        self.seen.add((module, chain))
        inner = f"{module}.{chain[0]}" if chain else ""
        if is_module := any(f"{name}.".startswith(f"{inner}.") for name in self.texts if inner):
            self.reach(inner, chain[1:])
        if module not in self.texts:
            return
        self.execute(module)
        if not chain or not (self._bind(module, chain, self.modules[module]) or is_module):
            self.whole(module)

    def _add(self, module: str, statement: Statement) -> None:
        if statement not in self.reached:
            self.reached.add(statement)
            self.waiting.append((module, statement))

    def _execute(self, one: Import) -> None:
        self.execute(one.module)
        self.execute(f"{one.module}.{one.attribute}")

    def _bind(self, module: str, chain: tuple[str, ...], where: Iterable[Statement]) -> bool:
        """Reach the statements that bind the head of a chain. Returns whether there is one."""
        binding = [statement for statement in where if {chain[0], "*"} & statement.binds]
        for statement in binding:
            self._add(module, statement)
            if statement.is_import:
                self._through(statement.imports, chain)
        for statement in where:
            if statement.acts:  # such as an import under `try`
                self._through(statement.imports, chain)
        return bool(binding)

    def _through(self, imports: Iterable[Import], chain: tuple[str, ...]) -> None:
        """Reach what a chain refers to in the modules that were imported under its head."""
        for one in imports:
            if one.name == "*":
                self.whole(one.module)
            elif one.name == chain[0]:
                behind = chain[1:]
                if one.attribute:
                    behind = (one.attribute, *behind)
                elif one.name == one.module.partition(".")[0]:  # `import a.b` binds a, which leads to a.b
                    self.reach(one.name, behind)
                    continue
                self.reach(one.module, behind)

    def _follow(self, module: str, statement: Statement) -> None:
        inside = () if statement.is_import else statement.imports
        if self.deep or statement.acts:
            for one in inside:
                self._execute(one)
                if one.name in ("", "*"):
                    self.whole(one.module)
                elif one.name in statement.shows:
                    self.reach(one.module, (one.attribute,) if one.attribute else ())
        for chain in () if statement.is_import else statement.uses:
            if self.deep or statement.acts:
                self._through(inside, chain)
            self._bind(module, chain, self.modules[module])
        self.everything |= statement.looks_up
        if statement.imports_any:
            self.anything.add("" if ("__name__",) in statement.uses else module)


@lru_cache(maxsize=512)
def statements(package: str, text: str) -> tuple[Statement, ...]:
    """The statements of a module; if Python cannot parse it, its text as a single one that acts."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        node = ast.Expr(ast.Constant(text))
        return (Statement(node, package, frozenset(), acts=True, documented=True),)
    found = []
    for whole in tree.body:
        if _is_docstring(whole) or _is_for_a_command(whole):
            continue
        for node in _alone(whole):
            binds = _binds(node)
            found.append(Statement(node, package, binds or frozenset(), binds is None, "__doc__" in text))
    return tuple(found)


def _alone(node: ast.stmt) -> Iterator[ast.stmt]:
    """Yield a statement; an import of several names as one statement for each."""
    if isinstance(node, ast.Import):
        yield from (ast.Import([alias]) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (ast.ImportFrom(node.module, [alias], node.level) for alias in node.names)
    else:
        yield node


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_a_command(node: ast.stmt) -> bool:
    """Return whether it is `if __name__ == "__main__":`, which an import does not run."""
    match node:
        case ast.If(test=ast.Compare(ast.Name("__name__"), [ast.Eq()], [ast.Constant("__main__")]), orelse=[]):
            return True
    return False


def _binds(node: ast.stmt) -> frozenset[str] | None:
    """The names that a statement binds; None if it may do more than that."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            pure = not node.decorator_list and not _calls(node.args)
            return frozenset({node.name}) if pure else None
        case ast.ClassDef():
            pure = not (node.decorator_list or node.keywords or any(map(_calls, node.bases)))
            return frozenset({node.name}) if pure and all(map(_is_plain_member, node.body)) else None
        case ast.Import(names=[alias]):
            return frozenset({alias.asname or alias.name.partition(".")[0]})
        case ast.ImportFrom(names=[alias]):
            return None if node.module == "__future__" else frozenset({alias.asname or alias.name})
        case ast.Assign(targets=targets, value=value):
            names = [name for target in targets for name in getattr(target, "elts", [target])]
        case ast.AnnAssign(target=target, value=value):
            names = [target]
        case _:
            return None
    bound = frozenset(name.id for name in names if isinstance(name, ast.Name))
    simple = all(isinstance(name, ast.Name) for name in names)
    return bound if simple and (value is None or not _calls(value)) else None


def _is_plain_member(node: ast.stmt) -> bool:
    """Return whether a statement in a class's body has no effect other than adding a member to the class."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        plain = all(isinstance(one, ast.Name) and one.id in _BUILT_IN_DECORATORS for one in node.decorator_list)
        return plain and not _calls(node.args)
    return isinstance(node, ast.Pass) or _is_docstring(node) or (_binds(node) is not None)


def _calls(node: ast.AST) -> bool:
    acting = ast.Call, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom
    return any(isinstance(one, acting) for one in ast.walk(node))


def _uses(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield the names that some syntax uses, each with the attributes after it."""
    chain: list[str] = []
    inner = node
    while isinstance(inner, ast.Attribute):
        chain.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        if not isinstance(inner.ctx, ast.Store):
            yield (inner.id, *chain)
        return
    if chain:
        yield ("", *chain)
    for child in ast.iter_child_nodes(inner):
        yield from _uses(child)


def _imports(node: ast.AST, package: str) -> Iterator[Import]:
    """Yield the imports in some syntax."""
    for one in ast.walk(node):
        match one:
            case ast.Import(names=aliases):
                for alias in aliases:
                    yield Import(alias.asname or alias.name.partition(".")[0], alias.name)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join(filter(None, (*above, module)))
                for alias in aliases:
                    yield Import(alias.asname or alias.name, base, "" if alias.name == "*" else alias.name)
            case ast.Call(func=function, args=[ast.Constant(str(name)), *_]) if _is_import_module(function):
                yield Import("", package * name.startswith(".") + name)


def _shown(node: ast.AST, shows: bool) -> Iterator[str]:
    """Yield the names of imports in some syntax that are visible outside it; in a function, those that are `global`."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            shows = False
            named = {name for one in ast.walk(node) if isinstance(one, ast.Global) for name in one.names}
            yield from (one.name for one in _imports(node, "") if one.name in named)
        case ast.ClassDef():
            shows = True
        case ast.Import() | ast.ImportFrom() if shows:
            yield from (one.name for one in _imports(node, ""))
    for one in ast.iter_child_nodes(node):
        yield from _shown(one, shows)


def _is_import_module(function: ast.expr) -> bool:
    """Return whether it is `importlib.import_module`, as an attribute or a plain name."""
    match function:
        case ast.Name("import_module") | ast.Attribute(attr="import_module"):
            return True
    return False


def _text(node: object, documented: bool) -> str:
    """Syntax as text without positions; without empty fields too, which differ between Python's versions."""
    if isinstance(node, list):
        return f"[{','.join(_text(one, documented) for one in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if name == "body" and not documented and isinstance(value, list):
            value = [one for one in value if not _is_docstring(one)]
        if name not in ("ctx", "kind", "type_comment") and value is not None and value != []:
            parts.append(f"{name}={_text(value, documented)}")
    return f"({' '.join(parts)})"


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
