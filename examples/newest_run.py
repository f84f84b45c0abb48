"""Print the id of the newest run: RUN=$(python newest_run.py)"""

from luthier.service.context import Context
from luthier.service.runs import list_runs

with Context.open() as context:
    print(list_runs(context)[0].record.run_id)
