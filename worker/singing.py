"""What every rank of a worker does for one job."""

from collections.abc import Iterator

from worker.adapters.model import LoadedModel
from worker.conditions import read_conditions
from worker.engine.denoise import Checkpoint
from worker.engine.generate import Progress, generate
from worker.engine.plan import GenerationPlan
from worker.engine.sync import Group
from worker.engine.warned import Warned
from worker.messages import Sing


def sing(
    model: LoadedModel, job: Sing, plan: GenerationPlan, resume: Checkpoint | None, group: Group
) -> Iterator[Progress]:
    """Encode what the request says, then walk the straight line."""
    conditions = read_conditions(model, job)
    yield from (Warned("prompt_cut", cut) for cut in model.find_cuts(conditions))
    yield from (Warned("compiling", shape) for shape in model.find_new_shapes(plan))
    yield from generate(plan, model.prepare(conditions), resume, group)
