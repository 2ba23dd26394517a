"""Runs the command: `python -m audiocraft_api_client.cli`."""

import sys

from audiocraft_api_client.cli import main

sys.exit(main())
