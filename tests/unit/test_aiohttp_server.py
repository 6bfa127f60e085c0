"""What is used of aiohttp's inside is looked for before anything is served."""

import subprocess
import sys

import aiohttp

_WITHOUT = """
import sys
from aiohttp.web_protocol import RequestHandler
del RequestHandler._messages
from replay.__main__ import main
sys.argv = ["replay", "serve"]
main()
"""


def test_an_aiohttp_with_other_names_inside_is_refused_in_one_line():
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"replay: aiohttp {aiohttp.__version__} has no RequestHandler._messages: expected aiohttp 3.14\n"
    )
