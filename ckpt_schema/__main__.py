"""``python -m ckpt_schema``, the same as ``ckpt-schema``."""

import sys

from ckpt_schema.cli import main

sys.exit(main())
