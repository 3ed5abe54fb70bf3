"""Serve the web page as a Hugging Face Space; ``docs/web_demo.md`` says how to make one.

The Space's variable ``PAGE_OPTIONS`` holds options of ``python -m scripts.web_demo``.
"""

import os
import shlex
from functools import partial

from scripts.web_demo import main
from util.errors import run_cli

address = ["--host", "0.0.0.0", "--trusted_hosts", os.environ.get("SPACE_HOST", "")]
run_cli(partial(main, [*address, *shlex.split(os.environ.get("PAGE_OPTIONS", ""))]))
