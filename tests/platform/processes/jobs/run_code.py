"""`python -m tests.platform.processes.jobs.run_code CODE`: what `python -c CODE` does, as a module, which can be forked."""

import sys

code = sys.argv[1]
exec(code)  # noqa: S102
