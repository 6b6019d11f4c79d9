"""The end of a driver whose Ray has died: in words, whoever ends the process."""

import subprocess
import sys
import textwrap

from raysat.executor.vigil import EXIT_CODE


def ended(code):
    """A process of its own that watches a child, which it kills; what comes of it."""
    watching = """
        import ctypes, subprocess, sys, threading, time
        from raysat.executor.vigil import Vigil
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        vigil = Vigil({"raylet": child.pid}, for_good=True).__enter__()
        print("begun", flush=True)
        child.kill()
        try:
            vigil._noticed.wait()
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
    """
    script = textwrap.dedent(watching) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_an_end_by_c_from_a_thread_of_its_own_is_one_in_words():
    made = ended("""
        threading.Thread(target=lambda: ctypes.CDLL(None).exit(1)).start()
        threading.Event().wait()
    """)
    assert made.returncode == EXIT_CODE
    assert made.stdout == "begun\n"
    assert made.stderr == (
        "raysat: Ray has died (its raylet is gone: killed, or this machine's memory or disk was full); what is "
        "finished stays: run the same command again.\n"
    )
