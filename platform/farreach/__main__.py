"""`python -m farreach` is the command `farreach`."""

from farreach.cli.main import main

raise SystemExit(main())
