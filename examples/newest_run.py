"""Print the id of the newest run: RUN=$(python newest_run.py)"""

from luthier.features.runs.service import list_runs
from luthier.platform.home.context import Context

with Context.open() as context:
    print(list_runs(context)[0].record.run_id)
