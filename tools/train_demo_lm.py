"""Train the small language model that ships in `panscope/builtin/demo`, and sample the text file beside it.

Why it exists: every part of Panscope can be tried without a download, on a model whose making is fully known.

The steps, in order; `--stages` runs some of them, each finds what it needs in the work folder:
1. `corpus`     a small public teacher tells many stories at low temperature; a thousand real stories alone are too few.
2. `tokenizer`  byte-level BPE on the training stories.
3. `train`      a Llama of a million parameters on real and sampled stories; the best held-out checkpoint is kept.
4. `publish`    the checkpoint in bf16, measured as it ships, with the recipe and the numbers in `training.json`.
5. `stories`    the text file, sampled from the published model.

    python tools/train_demo_lm.py                  # all of it, about an hour on two CPU cores

The last 100 real stories are held out: neither tokenizer, word filter nor weights see them.
Shapes: B rows, T tokens of a window, V vocabulary, L tokens of a stream.
"""

import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = ("corpus", "tokenizer", "train", "publish", "stories")
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True)
class Recipe:
    """Every choice of the demo model."""

    text: Path = REPOSITORY.parent / "shared" / "text"
    """Folder with `tinystories.jsonl` (real) and `tinystories_sampled.jsonl` (from the teacher, temperature 1)."""
    teacher: Path = REPOSITORY.parent / "shared" / "models" / "stories260K"
    """The model that tells the extra training stories."""
    work: Path = Path("/tmp/panscope_demo_lm")
    """Folder for the sampled corpus, checkpoints and the loss log; nothing in it ships."""
    out: Path = REPOSITORY / "panscope" / "demo"
    """Where the model and the text file go."""
    stages: tuple[str, ...] = STAGES
    """Which steps to run."""
    seed: int = 0
    threads: int = 2
    teacher_stories: int = 3_500
    """Stories drawn from the teacher before the word filter."""
    teacher_temperature: float = 0.7
    word_stories: int = 20
    """Sampled stories that must share a word, unless a real story has it; stories with odd words are dropped."""
    held_out: int = 100
    """Real stories, from the end of the file, kept for the measured loss."""
    vocabulary: int = 2048
    d_model: int = 128
    d_mlp: int = 384
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    context: int = 256
    steps: int = 1300
    batch: int = 32
    """Windows of `context` tokens a step."""
    real_share: float = 0.2
    """Part of the windows cut from real stories."""
    aligned_share: float = 0.5
    """Part of the windows that start at a story's first token; the others start anywhere."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 100
    evaluate_every: int = 100
    story_temperature: float = 0.8
    story_bytes: int = 1_950_000
    """Size at which the text file is full."""


def read_stories(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"].strip() for line in lines]


def write_stories(path: Path, stories: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories), encoding="utf-8")


def real_stories(recipe: Recipe) -> tuple[list[str], list[str]]:
    """(training stories, held-out stories)."""
    stories = read_stories(recipe.text / "tinystories.jsonl")
    return stories[: -recipe.held_out], stories[-recipe.held_out :]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def plain(stories: list[str], real: list[str], often: int) -> list[str]:
    """The sampled stories that end a sentence and hold no odd word: the teacher invents words now and then.

    A word is odd when no real training story and fewer than `often` sampled stories use it.
    """
    used = [words(story) for story in stories]
    counts = Counter(word for story in used for word in story)
    known = words(" ".join(real)) | {word for word, count in counts.items() if count >= often}
    return [
        story
        for story, its_words in zip(stories, used, strict=True)
        if story.isascii() and story.endswith((".", "!", "?", '"')) and its_words <= known
    ]


def finished_stories(model, tokenizer, rows: int, temperature: float, limit: int) -> list[str]:
    """Up to `rows` sampled stories: those that end within `limit` tokens and are not empty.

    A BOS ends a story too: the teacher was trained on stories joined by BOS and never says EOS.
    """
    ends = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    start_BT = torch.full((rows, 1), tokenizer.bos_token_id)
    with torch.inference_mode():
        out_BT = model.generate(
            start_BT,
            attention_mask=torch.ones_like(start_BT),
            do_sample=True,
            temperature=temperature,
            top_k=0,
            max_length=limit,
            eos_token_id=ends,
            pad_token_id=tokenizer.eos_token_id,
        )
    ended = out_BT[torch.isin(out_BT[:, -1], torch.tensor(ends))]
    return [story for row in tokenizer.batch_decode(ended, skip_special_tokens=True) if (story := row.strip())]


def sample_corpus(recipe: Recipe) -> None:
    """Stage `corpus`: the teacher's stories, one JSON line each, in the work folder."""
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_pretrained(recipe.teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(recipe.teacher)
    stories: list[str] = []
    while len(stories) < recipe.teacher_stories:
        stories += finished_stories(model, tokenizer, 512, recipe.teacher_temperature, 400)
        print(f"corpus: {len(stories)} stories", flush=True)
        write_stories(recipe.work / "corpus.jsonl", stories)


def sampled_stories(recipe: Recipe) -> list[str]:
    """All sampled training stories after the word filter."""
    sampled = read_stories(recipe.work / "corpus.jsonl") + read_stories(recipe.text / "tinystories_sampled.jsonl")
    return plain(sampled, real_stories(recipe)[0], recipe.word_stories)


def train_tokenizer(recipe: Recipe) -> None:
    """Stage `tokenizer`: byte-level BPE, special tokens first, BOS added in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(real_stories(recipe)[0] * 4 + sampled_stories(recipe), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(recipe.work / "tokenizer")


def token_rows(tokenizer, stories: list[str]) -> list[list[int]]:
    """BOS + tokens + EOS of each story."""
    return [[*row, tokenizer.eos_token_id] for row in tokenizer(stories)["input_ids"]]


class Stream:
    """Stories joined into one line of tokens, and windows cut from it."""

    def __init__(self, rows: list[list[int]], length: int):
        """`length` is T + 1: a window holds its own targets."""
        self.tokens_L = torch.tensor([token for row in rows for token in row])
        sizes = torch.tensor([len(row) for row in rows])
        starts = sizes.cumsum(0) - sizes
        self.length = length
        self.starts = starts[starts + length <= len(self.tokens_L)].tolist()

    def window(self, draw: random.Random, aligned: bool) -> Tensor:
        """One window [T + 1], from a story's first token or from anywhere."""
        start = draw.choice(self.starts) if aligned else draw.randrange(len(self.tokens_L) - self.length + 1)
        return self.tokens_L[start : start + self.length]


def batches(recipe: Recipe, real: Stream, sampled: Stream) -> Iterator[Tensor]:
    """Endless batches [B, T + 1] of the mix."""
    draw = random.Random(recipe.seed)
    while True:
        streams = [real if draw.random() < recipe.real_share else sampled for _ in range(recipe.batch)]
        yield torch.stack([stream.window(draw, draw.random() < recipe.aligned_share) for stream in streams])


def next_token_nats(model, tokens_BT: Tensor, ignore: int) -> Tensor:
    """Loss of every next token [B, T - 1]; zero where the target is `ignore`."""
    logits_BTV = model(tokens_BT[:, :-1], use_cache=False).logits.float()
    return functional.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT[:, 1:], reduction="none", ignore_index=ignore)


def held_out_loss(model, tokenizer, stories: list[str], context: int) -> dict[str, float]:
    """Nats per token and bits per byte on whole stories, each cut to `context` tokens after its BOS.

    The nats of EOS count, its bytes are none; so bits per byte is the cost of the text and of where it ends.
    """
    rows = [torch.tensor(row[: context + 1]) for row in token_rows(tokenizer, stories)]
    padded_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    with torch.inference_mode():
        nats = sum(next_token_nats(model, part, tokenizer.pad_token_id).sum().item() for part in padded_BT.split(25))
    tokens = sum(len(row) - 1 for row in rows)
    size = sum(len(text.encode()) for text in tokenizer.batch_decode(rows, skip_special_tokens=True))
    return {"nats_per_token": nats / tokens, "bits_per_byte": nats / math.log(2) / size, "tokens": tokens}


def new_model(recipe: Recipe, tokenizer) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)


def new_optimizer(recipe: Recipe, model: LlamaForCausalLM) -> torch.optim.Optimizer:
    """AdamW; norms are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def rate_factor(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def train(recipe: Recipe) -> None:
    """Stage `train`: writes the loss log and, each time the held-out loss improves, the checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(recipe.work / "tokenizer")
    real, held_out = real_stories(recipe)
    real_stream = Stream(token_rows(tokenizer, real), recipe.context + 1)
    sampled_stream = Stream(token_rows(tokenizer, sampled_stories(recipe)), recipe.context + 1)
    print(f"train: {len(real_stream.tokens_L)} real tokens, {len(sampled_stream.tokens_L)} sampled tokens", flush=True)
    model = new_model(recipe, tokenizer)
    optimizer = new_optimizer(recipe, model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(recipe, step))
    (recipe.work / "train.jsonl").unlink(missing_ok=True)
    best, started = math.inf, time.monotonic()
    for step, tokens_BT in zip(range(1, recipe.steps + 1), batches(recipe, real_stream, sampled_stream), strict=False):
        loss = train_step(model, optimizer, tokens_BT, tokenizer.pad_token_id)
        schedule.step()
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            measured = held_out_loss(model, tokenizer, held_out, recipe.context)
            record(recipe, {"step": step, "loss": loss, "minutes": (time.monotonic() - started) / 60, **measured})
            if measured["nats_per_token"] < best:
                best = measured["nats_per_token"]
                model.save_pretrained(recipe.work / "best")


def train_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, tokens_BT: Tensor, pad: int) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_nats(model, tokens_BT, pad).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def record(recipe: Recipe, line: dict[str, float]) -> None:
    print(json.dumps(line), flush=True)
    with (recipe.work / "train.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def publish(recipe: Recipe) -> None:
    """Stage `publish`: the model folder in bf16, and the numbers measured on those rounded weights."""
    folder = recipe.out / "model"
    tokenizer = AutoTokenizer.from_pretrained(recipe.work / "tokenizer")
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(recipe.work / "best", dtype=torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written as 0600, which a wheel would keep
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    steps = [json.loads(line) for line in (recipe.work / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    facts = {
        "parameters": model.num_parameters(),
        "held_out": held_out_loss(model, tokenizer, real_stories(recipe)[1], recipe.context),
        "train_minutes": steps[-1]["minutes"],
        "log": steps,
        "recipe": {name: value for name, value in asdict(recipe).items() if isinstance(value, int | float)},
    }
    (recipe.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def sample_stories(recipe: Recipe) -> None:
    """Stage `stories`: the text file, sampled from the published weights."""
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_pretrained(recipe.out / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(recipe.out / "model")
    stories: list[str] = []
    size = 0
    while size < recipe.story_bytes:
        for story in finished_stories(model, tokenizer, 512, recipe.story_temperature, recipe.context):
            size += len(json.dumps({"text": story})) + 1
            if size < recipe.story_bytes:
                stories.append(story)
        print(f"stories: {len(stories)}, {size} bytes", flush=True)
    write_stories(recipe.out / "stories.jsonl", stories)


def main(recipe: Recipe) -> None:
    torch.set_num_threads(recipe.threads)
    recipe.work.mkdir(parents=True, exist_ok=True)
    steps = dict(zip(STAGES, (sample_corpus, train_tokenizer, train, publish, sample_stories), strict=True))
    for stage in STAGES:
        if stage in recipe.stages:
            started = time.monotonic()
            steps[stage](recipe)
            print(f"{stage}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Recipe, description=__doc__))
