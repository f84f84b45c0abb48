"""`python -m tests.platform.processes.jobs.run_code CODE` does what `python -c CODE` does, and can be forked."""

import sys

code = sys.argv[1]
exec(code)
