"""InfoNCE over the documents of a whole step: exact whatever the cut, false negatives left out, Matryoshka."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.vacuous import nonempty
from torch import Tensor

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.plan import ObjectivePlan, Plan
from luthier.core.task_head import TaskHead
from luthier.ml.data.tokenise.search import tokenise_for_embedding
from luthier.ml.inference import batches
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.planning.batch_shapes import num_computed_tokens
from luthier.ml.training.model import MicroBatch, TrainableModel, collate
from luthier.ml.training.objective_protocol import Tools, Unit, rows_of
from luthier.ml.training.objectives.embedding import Candidates, Embedding, info_nce, pooled

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]


def row(ids: Sequence[int], name: str = "row", pooling: str = "mean") -> TokenisedExample:
    """The ids with a slot token behind them, which no state that counts looks at."""
    mask = bytes([0]) + b"\1" * len(ids) if pooling == "mean" else bytes(len(ids)) + b"\1"
    return TokenisedExample(name, array("i", [*ids, ids[-1]]), mask)


def units(num: int = 6, pooling: str = "mean", with_negatives: bool = True) -> list[Unit]:
    """Queries, documents and, for every second one, a hard negative, all of different lengths."""
    made: list[Unit] = []
    for n in range(num):
        query = [(7 * n + i) % 290 + 1 for i in range(3 + n)]
        document = [(50 * n + 3 * i) % 290 + 1 for i in range(4 + n % 3)]
        negative = [(90 + 11 * n + 2 * i) % 290 + 1 for i in range(5)]
        rows = [query, document, *([negative] if with_negatives and n % 2 else [])]
        made.append(tuple(row(ids, f"row:{n}", pooling) for ids in rows))
    return made


def objective_of(width: int, dimensions: tuple[int, ...] = (), pooling: str = "mean") -> Embedding:
    head = TaskHead(kind="embed", width=width, dimensions=dimensions, pooling=pooling)  # type: ignore[arg-type]
    return Embedding(ObjectivePlan(name="embed", temperature=0.1, task_head=head))


def width_of(model: TrainableModel) -> int:
    return int(model.base.config.hidden_size)


def gradient(model: TrainableModel) -> Tensor:
    found = [p.grad.flatten() for p in model.module.parameters() if p.grad is not None]
    return torch.cat(found).double()


def in_parts(
    objective: Embedding, model: TrainableModel, whole: list[Unit], size: int
) -> tuple[float, dict[str, float], Tensor]:
    """Loss, measures and gradient of a step that is cut into micro-batches of `size` units, as the loop does it."""
    model.module.zero_grad()
    torch.manual_seed(5)
    parts = [(whole[i : i + size], ()) for i in range(0, len(whole), size)]
    objective.draw(model, 0, parts)
    objective.look(model, [part for part, _ in parts])
    model.module.train()
    total, measures = 0.0, dict[str, float]()
    for part, _ in parts:
        losses = objective.losses(model, part, collate(rows_of(part), model.pad_id, "cpu"))
        (losses.total / objective.weight(whole)).backward()
        total += losses.total.item()
        for name, value in losses.measures.items():
            measures[name] = measures.get(name, 0.0) + float(value)
    return total / len(whole), measures, gradient(model)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_any_cut_gives_the_gradient_of_the_whole_batch(
    make_plan: MakePlan, make_model: MakeModel, method: str, size: int, pooling: str
) -> None:
    model = make_model(make_plan(method), torch.float64)
    objective = objective_of(width_of(model), (32, 8), pooling)
    whole = units(pooling=pooling)
    loss, measures, expected = in_parts(objective, model, whole, len(whole))
    cut_loss, cut_measures, found = in_parts(objective, model, whole, size)
    assert cut_loss == pytest.approx(loss, rel=1e-9)
    assert cut_measures == measures
    assert expected.norm() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_with_dropout_the_gradient_is_that_of_the_very_vectors_that_were_looked_at(
    make_plan: MakePlan, make_model: MakeModel
) -> None:
    model = make_model(make_plan("lora", dropout=0.3), torch.float64)
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "lora_B" in name:  # an adapter that adds nothing drops nothing
                weight.normal_(generator=torch.Generator().manual_seed(1), std=0.3)
    whole, objective = units(), objective_of(width_of(model))
    loss, _, found = in_parts(objective, model, whole, 2)
    # the same random numbers in the same order, with all activations held at once
    model.module.zero_grad()
    torch.manual_seed(5)
    vectors = torch.cat(
        [
            pooled(model.states(batch), batch.learned)
            for start in range(0, len(whole), 2)
            for batch in [collate(rows_of(whole[start : start + 2]), model.pad_id, "cpu")]
        ]
    )
    c = Candidates.of(whole)
    losses, _ = info_nce(vectors[c.queries], vectors[c.documents], c.positives, c.counts, 0.1, (vectors.shape[1],))
    losses.mean().backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(losses.mean().item(), rel=1e-9)
    torch.testing.assert_close(found, gradient(model), rtol=1e-6, atol=1e-9)


def two_lengths(num: int = 4) -> list[Unit]:
    """Short queries, and documents that are three times as long."""
    return [
        (row([n + i + 1 for i in range(4)], f"row:{n}"), row([9 * n + i + 1 for i in range(12 + n)], f"row:{n}"))
        for n in range(num)
    ]


def test_rows_of_two_lengths_are_not_padded_to_one_another(
    make_plan: MakePlan, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four queries of 5 tokens and four documents of up to 16: 8 x 16 positions in one pass, 4 x 5 + 4 x 16 in two."""
    model = make_model(make_plan("lora"), torch.float64)
    whole, objective, computed = two_lengths(), objective_of(width_of(model)), list[int]()
    hidden = model.hidden

    def note(batch: MicroBatch) -> Tensor:
        computed.append(batch.num_computed_tokens)
        return hidden(batch)

    monkeypatch.setattr(model, "hidden", note)
    loss, measures, expected = in_parts(objective, model, whole, 4)
    assert computed == [8 * 16]
    monkeypatch.setattr(batches, "CALL_TOKENS", 0)
    for size, seen in ((4, [4 * 16, 4 * 5]), (2, 2 * [2 * 14, 2 * 5, 2 * 16, 2 * 5])):
        computed.clear()
        apart_loss, apart_measures, found = in_parts(objective, model, whole, size)
        assert computed == seen
        assert apart_loss == pytest.approx(loss, rel=1e-9)
        assert apart_measures == measures
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    lengths = [one.num_tokens for one in rows_of(whole)]
    assert num_computed_tokens(lengths, apart=True) == 4 * 16 + 4 * 5


def test_with_dropout_both_passes_over_rows_of_two_lengths_draw_the_same(
    make_plan: MakePlan, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(make_plan("lora", dropout=0.3), torch.float64)
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(1), std=0.3)
    monkeypatch.setattr(batches, "CALL_TOKENS", 0)
    whole, objective, seen = two_lengths(), objective_of(width_of(model)), list[Tensor]()
    states = model.states

    def note(batch: MicroBatch) -> Tensor:
        found = states(batch)
        seen.append(found.detach())
        return found

    monkeypatch.setattr(model, "states", note)
    in_parts(objective, model, whole, 2)
    assert len(seen) == 8
    for looked, computed in nonempty(zip(seen[:4], seen[4:], strict=True)):
        assert torch.equal(looked, computed)


def test_the_loss_is_that_of_the_paper(make_plan: MakePlan, make_model: MakeModel) -> None:
    model = make_model(make_plan("lora"), torch.float64)
    whole = units()
    loss, measures, _ = in_parts(objective_of(width_of(model)), model, whole, 3)

    def vector(one: TokenisedExample) -> Tensor:
        ids = torch.tensor(list(one.input_ids[:-1]))[None]
        with torch.no_grad():
            states = model.method.hidden(model.body, ids, torch.arange(ids.shape[1])[None])[0]
        return F.normalize(states.mean(0), dim=-1)

    documents = [vector(one) for unit in whole for one in unit[1:]]
    total, place = 0.0, 0
    for unit in whole:
        scores = [float(vector(unit[0]) @ document) / 0.1 for document in documents]
        total += math.log(sum(map(math.exp, scores))) - scores[place]
        place += len(unit) - 1
    assert loss == pytest.approx(total / len(whole), rel=1e-9)
    assert measures["num_negatives"] == len(whole) * (len(documents) - 1)


def test_validation_ranks_among_all_documents_and_leaves_no_gradient(
    make_plan: MakePlan, make_model: MakeModel
) -> None:
    model = make_model(make_plan("lora", dropout=0.3), torch.float64)
    whole, objective = units(), objective_of(width_of(model))
    model.module.eval()

    def validation(size: int) -> float:
        parts = [(whole[i : i + size], ()) for i in range(0, len(whole), size)]
        objective.draw_validation(model, parts)
        total = 0.0
        with torch.no_grad():
            objective.look(model, [part for part, _ in parts])
            for part, _ in nonempty(parts):
                found = objective.losses(model, part, collate(rows_of(part), model.pad_id, "cpu"))
                assert not found.total.requires_grad
                total += found.total.item()
        return total

    assert validation(1) == pytest.approx(validation(6), rel=1e-9)
    assert not model.module.training


def test_the_ranks_of_a_world_add_up_to_the_whole(make_plan: MakePlan, make_model: MakeModel) -> None:
    model = make_model(make_plan("lora"), torch.float64)
    whole, objective = units(), objective_of(width_of(model))
    loss, _, expected = in_parts(objective, model, whole, len(whole))
    model.module.zero_grad()
    everything, total = [whole[:3], whole[3:]], 0.0
    for own in everything:
        objective.draw(model, 0, [(own, ())])
        objective.look(model, everything)
        losses = objective.losses(model, own, collate(rows_of(own), model.pad_id, "cpu"))
        (losses.total / len(whole)).backward()
        total += losses.total.item()
    assert total / len(whole) == pytest.approx(loss, rel=1e-9)
    torch.testing.assert_close(gradient(model), expected, rtol=1e-6, atol=1e-9)


def test_false_negatives_are_left_out() -> None:
    a, b, c, d = ([n, n + 1, n + 2] for n in (10, 20, 30, 40))
    whole: list[Unit] = [
        (row(a), row(b)),  # 0: b is right
        (row(a), row(c)),  # 1: the same query, another right document
        (row(d), row(b), row(a)),  # 2: the same document, and a text that is a query elsewhere
    ]
    found = Candidates.of(whole)
    assert found.queries.tolist() == [0, 2, 4]
    assert found.documents.tolist() == [1, 3, 5, 6]
    assert found.positives.tolist() == [0, 1, 2]
    # documents: b (of 0), c (of 1), b (of 2), a (hard negative of 2)
    assert found.counts.tolist() == [
        [True, False, False, False],  # c is right for the same query, b is its own text, a is the query itself
        [False, True, False, False],
        [False, True, True, True],
    ]


@pytest.mark.parametrize("prompts", [("", ""), ("query: ", ""), ("", "passage: "), ("query: ", "passage: ")])
def test_a_document_with_the_text_of_the_query_is_no_negative_whatever_their_prompts(
    tiny_model: Path, prompts: tuple[str, str]
) -> None:
    """Pairs of similar questions: the second one is the document of the first row and the query of the second."""
    template = ChatTemplate.load(str(tiny_model), "auto")
    pairs = [("how to tune a violin", "tuning of violins"), ("tuning of violins", "why do strings break")]
    whole: list[Unit] = [
        tokenise_for_embedding(
            Example(
                id=f"rows:{n}",
                conversation=Conversation(
                    messages=(Message(role="user", content=query), Message(role="assistant", content=document))
                ),
            ),
            template,
            query_prompt=prompts[0],
            document_prompt=prompts[1],
            pooling="mean",
        )
        for n, (query, document) in enumerate(pairs)
    ]
    head = TaskHead(kind="embed", width=4, query_prompt=prompts[0], document_prompt=prompts[1])
    objective = Embedding(ObjectivePlan(name="embed", temperature=0.1, task_head=head), Tools(template=template))
    _, _, num_negatives = objective._losses_of(torch.eye(4), whole)
    assert num_negatives.tolist() == [1, 0]


def test_a_query_without_negatives_has_no_loss_and_no_gradient() -> None:
    vectors = torch.tensor([[1.0, 0.0]], requires_grad=True)
    only = torch.ones(1, 1, dtype=torch.bool)
    losses, _ = info_nce(vectors, torch.tensor([[0.0, 1.0]]), torch.tensor([0]), only, 0.05, (2,))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.tolist() == [0.0]
    assert vectors.grad is not None
    assert not vectors.grad.any()


def test_each_length_of_a_matryoshka_has_a_loss_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(4, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    every = torch.ones(4, 4, dtype=torch.bool)

    def of(*sizes: int) -> Tensor:
        return info_nce(queries, documents, torch.arange(4), every, 0.05, sizes)[0]

    torch.testing.assert_close(of(8, 4, 2), (of(8) + of(4) + of(2)) / 3)
    by_hand = F.cosine_similarity(queries[:, None, :4], documents[None, :, :4], dim=-1) / 0.05
    torch.testing.assert_close(of(4), by_hand.logsumexp(-1) - by_hand.diagonal())
