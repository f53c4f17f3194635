"""`python -m hft2ane.cli`, as the child process of a conversion is started."""

from hft2ane.cli import main

raise SystemExit(main())
