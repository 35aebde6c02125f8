"""The latents and positions that an edit selects, in every form they can be given; and invalid edits.

Shape letters: N sequences, T tokens, F latents.
"""

import resource
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from panscope.intervene.attach import attach
from panscope.intervene.edits import Ablate, Clamp, Steer, row_mask
from panscope.lms.model import LanguageModel
from panscope.loading.codes import Codes
from panscope.types import Site, UserError
from tests.support.attached import F, forward, made

Tokens = tuple[Tensor, Tensor]
SITE = Site(1, "resid_post")
CPU = torch.device("cpu")
PLACES = {
    "one": (4, [4]),
    "several": ((1, 7, 30), [1, 7]),
    "an array": (np.array([2, 5]), [2, 5]),
    "a tensor": (torch.tensor([2, 5]), [2, 5]),
    "a slice": (slice(3, None, 2), [3, 5, 7]),
}


@pytest.mark.parametrize("given", PLACES)
def test_positions_in_the_pass_under_way(given: str) -> None:
    """Tokens 3 to 8 of two sequences."""
    positions, expected = PLACES[given]
    mask = row_mask(positions, 3, 2, 6, CPU)  # pyright: ignore[reportArgumentType]
    assert mask is not None and mask.shape == (12,)
    for sequence in mask.view(2, 6):
        assert (sequence.nonzero().flatten() + 3).tolist() == [place for place in expected if 3 <= place < 9]


def test_marks_are_of_places_not_numbers() -> None:
    marks = torch.tensor([[False, True, True, False, True], [False, False, False, True, False]])
    for first, tokens in ((0, 5), (1, 2), (3, 6), (7, 2)):
        mask = row_mask(marks, first, 2, tokens, CPU)
        assert mask is not None
        padded = torch.nn.functional.pad(marks, (0, 10))
        assert torch.equal(mask.view(2, tokens), padded[:, first : first + tokens])
    one = row_mask(marks[0], 0, 3, 5, CPU)
    assert one is not None and torch.equal(one.view(3, 5), marks[0].expand(3, 5))
    with pytest.raises(UserError, match="mask of 2 sequences, but the pass has 3"):
        row_mask(marks, 0, 3, 5, CPU)


def test_each_sequence_is_steered_at_its_own_places(llama: LanguageModel, tokens: Tokens) -> None:
    coder, marks = made(llama, SITE, name="c"), torch.zeros(3, 9, dtype=torch.bool)
    marks[0, 2] = marks[2, 7] = True
    clean, whole = forward(llama, tokens), llama.run(*tokens, read=[SITE]).activations[SITE]
    with attach(llama, coder, edits=Steer("c", 3, 5.0, positions=marks)):
        found = forward(llama, tokens)
    after = whole + 5.0 * coder.wired.coder.W_dec[3] * marks[..., None]
    expected = llama.run(*tokens, splice={SITE: lambda y: after}, logits=True).logits
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1], clean[1]) and torch.equal(found[0, :2], clean[0, :2])


@pytest.mark.parametrize("latents", [[2, 5], range(2, 6, 3), np.array([2, 5]), torch.tensor([5, 2]), (5, 2, 2)])
def test_latents_however_they_are_given(latents: Any, llama: LanguageModel, tokens: Tokens) -> None:
    coder = made(llama, SITE, name="c")
    with attach(llama, coder, edits=[Steer("c", 2, 3.0), Steer("c", np.int64(5), 3.0)]):  # pyright: ignore
        expected = forward(llama, tokens)
    with attach(llama, coder, edits=Steer("c", latents, 3.0)):
        torch.testing.assert_close(forward(llama, tokens), expected)


@pytest.mark.parametrize("amount", [2, np.float32(2), torch.tensor(2.0), torch.tensor([2.0])])
def test_amounts_however_they_are_given(amount: Any, llama: LanguageModel, tokens: Tokens) -> None:
    coder = made(llama, SITE, name="c")
    for edit in (Steer, Clamp):
        with attach(llama, coder, edits=edit("c", 2, 2.0)):
            expected = forward(llama, tokens)
        with attach(llama, coder, edits=edit("c", 2, amount)):
            assert torch.equal(forward(llama, tokens), expected)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "relu"])
def test_no_latents_are_no_edit(architecture: str, llama: LanguageModel, tokens: Tokens) -> None:
    coder = made(llama, SITE, name="c", architecture=architecture)
    with attach(llama, coder, edits=[Ablate("c", [])]):
        assert torch.equal(forward(llama, tokens), forward(llama, tokens))
    assert coder.encode(torch.randn(4, 24)).columns(torch.tensor([], dtype=torch.int64)).shape == (4, 0)


WRONG: dict[str, tuple[Any, str]] = {
    "bools": ([Ablate("c", 1, positions=[True, False])], "positions are .*: give integers"),
    "a cube of bools": ([Ablate("c", 1, positions=torch.zeros(1, 2, 3).bool())], "is a mask of the shape"),
    "halves": ([Ablate("c", 1, positions=torch.tensor([0.5]))], "positions are .*: give integers"),
    "a name": ([Ablate("c", "1")], "latents are '1': give integers"),  # pyright: ignore
    "no number": ([Clamp("c", 1, float("nan"))], "value=nan.* is not one finite number"),
    "two amounts": ([Clamp("c", [1, 2], [1.0, 2.0])], "an edit for each amount"),  # pyright: ignore
    "a text for an amount": ([Steer("c", 1, "2")], "is not one finite number"),  # pyright: ignore
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_no_edit_is(wrong: str, llama: LanguageModel) -> None:
    edits, message = WRONG[wrong]
    with pytest.raises(UserError, match=message), attach(llama, made(llama, SITE, name="c"), edits=edits):
        pass


def test_names_and_sites_alone(llama: LanguageModel, tokens: Tokens) -> None:
    one, two = made(llama, SITE, name="one"), made(llama, Site(0, "mlp_out"), name="two")
    with attach(llama, [one, two], splice="two", read=Site(2, "resid_post")) as alone:
        found = forward(llama, tokens)
    with attach(llama, [one, two], splice=["two"]):
        assert torch.equal(forward(llama, tokens), found)
    assert Site(2, "resid_post") in alone.activations
    with pytest.raises(UserError, match="coder 'three' is not attached: name one of one, two"):
        alone.parts("three")
    with attach(llama, one, read=["L02.resid_post", Site(0, "mlp_out")]) as texts:
        with pytest.raises(UserError, match=r"site 'L02\.mlp_in' was not recorded; available: nothing; run a pass"):
            texts.activations[Site(2, "mlp_in")]
        forward(llama, tokens)
    assert list(texts.activations) == [Site(0, "mlp_out"), SITE, Site(2, "resid_post")]
    assert repr(texts) == "Attached(one; tokens 0 to 8)" and repr(texts.latents["one"]).startswith("Codes([3, 9, 20], ")
    with pytest.raises(UserError, match="coder 'two' was not recorded; available: one"):
        texts.latents["two"]
    others: list[tuple[dict[str, Any], str]] = [
        ({"read": ["resid_post"]}, "site 'resid_post' is not understood"),
        ({"error_term": True}, "error_term is True, but nothing is spliced"),
        ({"coders": "one"}, "a coder is 'one': give coders from `load`"),
    ]
    for options, message in others:
        given: dict[str, Any] = {"coders": one} | options
        with pytest.raises(UserError, match=message), attach(llama, **given):
            pass


def test_all_but_a_few_latents_of_a_wide_coder(llama: LanguageModel, tokens: Tokens) -> None:
    """Ablates all latents but a circuit, as is common: its cost must not grow with latents times active codes."""
    width = 16_384
    coder = made(llama, SITE, name="c", width=width, kernels="sparse", sparsity=16)
    kept = {int(coder.encode(llama.run(*tokens, read=[SITE]).activations[SITE]).entries()[1][0])}
    began = time.process_time()
    with attach(llama, coder, edits=Ablate("c", [latent for latent in range(width) if latent not in kept])) as seen:
        found = forward(llama, tokens)
    assert time.process_time() - began < 5
    codes = seen.latents["c"].tensor()
    codes[..., list(kept)] = 0
    change = codes @ coder.wired.coder.W_dec
    expected = llama.run(*tokens, splice={SITE: lambda y: y - change}, logits=True).logits
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_columns_take_memory_by_their_own_size() -> None:
    """Memory is not proportional to rows times active codes times columns, which would be 4 GB here."""
    rows, width, active = 1024, 32_768, 32
    indices = torch.randint(width, (rows, active))
    codes = Codes(torch.ones(rows, active), width, indices, None, (rows,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = codes.columns(torch.arange(width))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000
    assert torch.equal(found.sum(dim=1), torch.full((rows,), float(active))) and F == 20


def test_coders_and_hook_names_in_place_of_names(llama: LanguageModel) -> None:
    site = Site(1, "resid_post")
    coder = made(llama, site, name="c")
    with attach(llama, coder, edits=Steer(coder, 3, 2.0), read="blocks.0.hook_mlp_out") as by_coder:
        logits = forward(llama, TOKENS)
    with attach(llama, coder, edits=Steer("c", 3, 2.0)):
        assert torch.equal(forward(llama, TOKENS), logits)
    assert by_coder.latents["c"].leading == (1, 5)
    assert torch.equal(by_coder.latents[coder].tensor(), by_coder.latents["c"].tensor())  # pyright: ignore
    lens: Any = "blocks.1.hook_resid_post"
    assert torch.equal(by_coder.activations[lens], by_coder.activations[site])
    assert torch.equal(by_coder.activations[lens], by_coder.activations["L01.resid_post"])  # pyright: ignore
    assert Site(0, "mlp_out") in by_coder.activations
    with (
        pytest.raises(UserError, match="coder 'other' is not attached"),
        attach(llama, coder, edits=Steer(made(llama, site, name="other"), 3, 2.0)),
    ):
        pass


TOKENS = (torch.tensor([[5, 9, 4, 11, 6]]), torch.ones(1, 5, dtype=torch.bool))
