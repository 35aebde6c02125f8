"""Counts the floating-point operations of training: of the coders, per step, and of the language model.

A multiply-add counts as two. There are two counts for a coder. *Dense* is that of the reference kernels: every product
over all latents. *Sparse* is the minimum for exact training: the encoder over all latents, since the active ones must
be found, and everything after it over the active latents only.

Per step, product by product:

                          dense     sparse
    encode                2 B D F   2 B D F
    decode                2 B E F   2 B k E
    gradient of codes     2 B E F   2 B k E
    gradient of W_dec     2 B E F   2 B k E
    gradient of W_enc     2 B D F   2 B k D
    gradient of b_dec     2 B D F   2 D F       only with a pre-encoder bias, whose gradient goes through W_enc

which for D = E is 10 or 12 B D F against 2 B D F + 8 B k D (+ 2 D F).

Shape letters: B rows, D input width, E output width, F latents, k active latents a row, T tokens a sequence.
"""

from collections.abc import Sequence

from panscope.coders.base import CoderConfig
from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import Plan

ASSUMED_L0 = 100.0
"""Active latents per row if only a penalty coefficient is given: near the middle of Gemma Scope's range, 10 to 400."""


def dense_flops(coder: CoderConfig, rows: int) -> float:
    """FLOPs of one step over all latents; Multi-TopK and the gate's own reconstruction each decode once more.

    Multi-TopK adds 6 B E F, Gated 4 B E F, since that decoder is frozen (Rajamanoharan et al. 2024a), an affine skip
    4 B D E. Matryoshka's nested reconstructions are sums of the same products and add nothing. AuxK computes dead
    latents only; it is not counted, since there should be few.
    """
    into, out = rows * coder.d_in * coder.width, rows * coder.d_out * coder.width
    encoder = 6 * into if coder.pre_encoder_bias else 4 * into
    decoders = 6 * out * len(coder.codes_of_a_step(1.0)) + 4 * out * coder.frozen_decodes
    return float(encoder + decoders + _skip(coder, rows))


def sparse_flops(coder: CoderConfig, rows: int, active: float) -> float:
    """FLOPs of one step if only `active` latents per row are computed after the encoder.

    Multi-TopK's second code has `multi_factor` times as many. AuxK is not counted, as in `dense_flops`. JumpReLU
    latents just below their threshold, within the estimator's window, are not counted either: their number is unknown.
    """
    d_in, d_out = coder.d_in, coder.d_out
    codes = coder.codes_of_a_step(active)
    encoder = 2 * rows * d_in * coder.width + 2 * rows * max(codes) * d_in
    decoders = 6 * rows * sum(codes) * d_out + 4 * rows * active * d_out * coder.frozen_decodes
    bias = 2 * d_in * coder.width if coder.pre_encoder_bias else 0
    return float(encoder + decoders + bias + _skip(coder, rows))


def active_latents(planned: PlannedCoder) -> float:
    """Active latents per row, averaged over the run.

    TopK architectures: K, including the larger K during K-annealing. JumpReLU with a target L0: the target. Otherwise
    L0 results from the penalty during training: ASSUMED_L0.
    """
    coder, training = planned.coder, planned.training
    kind, value = coder.sparsity_aim()
    if kind == "K":
        warm, start = training.sparsity_warmup_steps, training.sparsity_from
        if warm <= planned.steps:
            return coder.sparsity + (start - coder.sparsity) * warm / (2 * planned.steps)
        return start + (coder.sparsity - start) * planned.steps / (2 * warm)
    if kind == "L0":
        return value
    return min(ASSUMED_L0, coder.width)


def l0_is_assumed(planned: PlannedCoder) -> bool:
    """Whether `active_latents` is ASSUMED_L0, because the sparsity is set by a penalty coefficient."""
    return planned.coder.sparsity_aim()[0] == "lambda"


def rows_of_a_step(planned: PlannedCoder, batch: int) -> int:
    """B: the batch size, multiplied by the number of sites that a multi-layer coder stacks."""
    return batch * planned.wiring.stacks


def coder_flops(planned: PlannedCoder, batch: int) -> tuple[float, float]:
    """Dense and sparse FLOPs of all steps of one coder."""
    rows = rows_of_a_step(planned, batch)
    dense = dense_flops(planned.coder, rows)
    return planned.steps * dense, planned.steps * sparse_flops(planned.coder, rows, active_latents(planned))


def token_flops(facts: ModelFacts, layers: int, context: int) -> float:
    """FLOPs per token of a forward pass through the first `layers` blocks, for full sequences of `context` tokens.

    Two per weight of the blocks' matrices, and 2 (T + 1) H for attention, where H is the total dimension of all heads:
    scores and mixing take 2 H each per pair of tokens, and a token attends to (T + 1) / 2 on average. The unembedding
    is not counted: a pass ends at the deepest site, here the end of its block. Local attention windows shorter than
    the context would cost less.
    """
    blocks = facts.matmul_parameters - facts.vocabulary * facts.d_model
    return layers * (2 * blocks / facts.n_layers + 2 * (context + 1) * facts.heads_width)


def lm_flops(plan: Plan, facts: ModelFacts) -> float:
    """FLOPs of the language model: one pass for all coders, to the deepest site of any coder still in training."""
    total, done = 0.0, 0
    for end in sorted({coder.steps for coder in plan.coders}):
        learning = [coder for coder in plan.coders if coder.steps >= end]
        total += pass_flops(plan, facts, learning, end - done)
        done = end
    return total


def pass_flops(plan: Plan, facts: ModelFacts, coders: Sequence[PlannedCoder], steps: int) -> float:
    """FLOPs of the language model for `steps` batches of the sites of these coders."""
    layers = 1 + max(site.layer for coder in coders for site in coder.wiring.sites())
    context = plan.suite.data.context
    assert context is not None, "a plan's context is settled"
    return steps * plan.batch * tokens_per_row(plan) * token_flops(facts, layers, context)


def tokens_per_row(plan: Plan) -> float:
    """Tokens computed per training token, for full sequences: each begins with BOS, which is not trained on."""
    context = plan.suite.data.context
    assert context is not None, "a plan's context is settled"
    return context / (context - 1) if plan.suite.data.packing == "documents" else 1.0


def _skip(coder: CoderConfig, rows: int) -> int:
    """FLOPs of W_skip: forward and gradient for each trained decoding, forward only for the gate's frozen one."""
    each = 4 * len(coder.codes_of_a_step(1.0)) + 2 * coder.frozen_decodes
    return each * rows * coder.d_in * coder.d_out if coder.skip else 0
