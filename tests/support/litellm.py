"""LiteLLM's proxy as a real process: an OpenAI-compatible server that others wrote, in an environment of its own.

Its models answer from the configuration, or from a server behind it; nothing leaves this machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from support.ports import free_port
from support.processes import Process

ENVIRONMENT = Path(__file__).parents[1] / "acceptance" / ".litellm"
MASTER_KEY = "sk-tests"

_PATIENCE_S = 120.0  # it imports for 5 s where nobody else works, and for a minute where many do
_FOREIGN = re.compile(r"LITELLM_|OPENAI_|DATABASE_URL|.*_PROXY$", re.IGNORECASE)  # settings of whoever runs the tests


class LiteLLM(Process):
    """One proxy; `models` gives each name what LiteLLM calls its `litellm_params`."""

    def __init__(self, directory: Path, models: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.port = free_port()
        self._models = models
        self._directory = directory
        self._log = directory / "litellm.log"

    @property
    def url(self) -> str:
        """What `--upstream-url` takes."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Start, and wait until it answers."""
        program = ENVIRONMENT / "bin" / "litellm"
        assert program.exists(), "LiteLLM is not installed: sh tests/install-programs.sh"
        config = self._directory / "config.yaml"
        config.write_text(json.dumps(self._config(), ensure_ascii=False))  # which is YAML too
        clean = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        nowhere = f"http://127.0.0.1:{free_port()}"  # whatever it might want to ask elsewhere
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [program, "--config", config, "--host", "127.0.0.1", "--port", str(self.port), "--telemetry", "False"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **clean,
                    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                    "LITELLM_MASTER_KEY": MASTER_KEY,
                    "HTTP_PROXY": nowhere,
                    "HTTPS_PROXY": nowhere,
                    "NO_PROXY": "127.0.0.1",
                },
                cwd=self._directory,
                start_new_session=True,
            )
        self._wait_until_it_answers()

    def _config(self) -> dict[str, Any]:
        return {
            "model_list": [
                {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_key": "none"} | params}
                for name, params in self._models.items()
            ],
            "general_settings": {"master_key": MASTER_KEY},
            # A model that refuses is asked once, and asked again by the next test.
            "litellm_settings": {"num_retries": 0, "telemetry": False},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        }

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                raise AssertionError(f"LiteLLM did not start:\n{self.log[-5000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.port}/health/liveliness", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
