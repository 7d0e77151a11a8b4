"""`python -m farreach` is the command `farreach`."""

from farreach.cli import main

raise SystemExit(main())
