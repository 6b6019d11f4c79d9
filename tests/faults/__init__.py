"""A fault harness: faults drawn from seeds strike a tiny sweep, and what its results promise is checked afterwards.

    python -m tests.faults                 200 draws, 150 in process and 50 under Ray, and a table of classes
    python -m tests.faults --seed 17       one draw again, with what it drew and what it found
    python -m tests.faults --planted       three planted defects, and in how many draws each is found

Run from the root of a checkout. The way of a draw: `plans` draws a `Fault` from its seed -> `bench` runs the command in
a fresh folder, where `inject` counts events and strikes -> the same command again, undisturbed, until it ends well ->
`checks` compares. The code under test has no hook for any of this: `inject` wraps what it calls.
"""
