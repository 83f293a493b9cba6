"""Figures of run.py as tables between the markers of a Markdown page, and as a drawing. Nothing in them is written by hand."""

import argparse
import itertools
import json
import math
import re
from pathlib import Path
from xml.sax.saxutils import escape

from ceilings import floor
from data import INPUTS
from inference import BF16, BY_VALUE, OURS, PLAIN, PLAIN_BF16, PRODUCT, READ
from training import CLIPPED, NO_AUX

BEGIN, END = "<!-- figures: made by benches/peers/report.py -->", "<!-- end of figures -->"
OWN = (OURS, PLAIN, BF16, PLAIN_BF16, PRODUCT, BY_VALUE, CLIPPED, NO_AUX)
FIRST, GEMMA, TRAINED = [768, 32768, 32], [2304, 65536, 64], [768, 16384, 32]
ORDER = ("encode TopK", "encode JumpReLU", "encode BatchTopK", "decode", "steer by 16 features", "train step", "train step, 5 % dead")
# operation, shape, tokens, beside, the least ratio that was aimed at
GOALS = [
    ("encode TopK", FIRST, 256, "torch f32", 10), ("encode TopK", FIRST, 256, "torch bf16", 2.5),
    ("encode TopK", FIRST, 1, "torch bf16", 2), ("encode TopK", FIRST, 1, READ, 1),
    ("encode TopK", FIRST, 16, "torch bf16", 2), ("encode TopK", FIRST, 16, READ, 1),
    ("encode TopK", GEMMA, 256, "torch f32", 8), ("encode TopK", GEMMA, 256, "torch bf16", 2),
    ("encode TopK", GEMMA, 2048, "torch f32", 8), ("encode TopK", GEMMA, 2048, "torch bf16", 2),
    ("encode JumpReLU", FIRST, 256, PRODUCT, 1 / 1.1), ("encode BatchTopK", FIRST, 256, PRODUCT, 1 / 1.1),
    ("decode", FIRST, 256, "torch embedding_bag", 2), ("decode", FIRST, 256, "sae-lens", 50),
    ("train step", TRAINED, 2048, "sparsify", 6), ("train step, 5 % dead", TRAINED, 2048, "sparsify", 8),
    ("train step, 5 % dead", TRAINED, 2048, NO_AUX, 1 / 1.1),
]
CAPTURE, CAPTURE_MOST = "capture, n = 32768", 1.03
# What a peer does less, or more, than ours.
PEERS = {
    "torch f32": "`topk(linear(x - b_dec, W, b), k, sorted=False)`: scores of another order of sums, winners not sorted; ours are the canonical f32 scores, sorted. For thresholds: a dense `[T, n]` result. For steering: `x += c @ W_dec[ids]`",
    "torch bf16": "the same on bf16 weights and activations, already converted: its scores are rounded to bf16, so that winners differ; ours are exact in f32",
    "torch.compile f32": "the same under `torch.compile(dynamic=False)`, in its default mode, compiled before",
    "torch.compile bf16": "both of the above",
    "torch embedding_bag": "`embedding_bag(indices, W_dec, per_sample_weights=values, mode=\"sum\") + b_dec`, 64-bit indices made before",
    "sae-lens": "`TopKSAE.encode` writes a dense `[T, n]`, `decode` multiplies it (made before); `JumpReLUSAE.encode` likewise. Training: `SAETrainer.step` of `TopKTrainingSAE` at its defaults, dense; clips gradients, multiplies by decoder norms, does not renormalise the decoder, keeps no moving average",
    "sae-lens, sparse": "the same with `use_sparse_activations`, and without the decoder norms, which it cannot do on sparse tensors on the CPU",
    "sparsify": "`SparseCoder.encode`, which also gives back the dense pre-activations, `decode`: eager, as `SPARSIFY_DISABLE_TRITON=1` chooses on a CPU. Training: `Trainer.fit` on one batch a call, with `optimizer=\"adam\"`, which is plain `torch.optim.Adam` here; without its checkpoint; does not clip, keeps no moving average. AuxK is off by default (`auxk_alpha` 0), as in `train step`; in `train step, 5 % dead` it is 1/32, and the gradient of its pre-activations is dropped by `FusedEncoder.backward`, so that it never reaches the encoder; ours does both",
    "sparsify, signum": "the same with its default optimizer, which has one moment instead of two",
    "dictionary_learning": "`BatchTopKSAE.encode` by threshold: a dense `[T, n]` result",
    "dictionary_learning TopK": "`TopKTrainer.update`: dense decoding and gradients; clips gradients, keeps no moving average",
    "dictionary_learning BatchTopK": "`BatchTopKTrainer.update`: the same, but k · T winners are chosen from the whole batch, which ours does not train",
    READ: "no peer but a floor: the bytes of W_enc in bf16, summed by ceilings.c",
    PLAIN: "ours with `SAE_SESSION_NO_SCREEN`: every score in f32", BF16: "ours on bf16 weights: exact for those",
    PLAIN_BF16: "both", PRODUCT: "ours with a threshold that nothing passes: the products and comparisons alone", BY_VALUE: "ours, listed by value instead of by index",
    CLIPPED: "ours with `clip_norm` 1, which takes a pass of its own", NO_AUX: "ours with `SAE_TRAIN_NO_AUX`, on the same weights",
}
CLIPS = ("sae-lens", "sae-lens, sparse", "dictionary_learning TopK", "dictionary_learning BatchTopK")


def base(group, peer):
    """Whom of ours a peer is held against: with clipping where it clips."""
    return CLIPPED if peer in CLIPS and CLIPPED in group["times"] else OURS


def ratio(group, peer):
    return group["times"][peer]["ms"] / group["times"][base(group, peer)]["ms"]


def reached(figures, group, name):
    """Which share of the ceiling, and what that is."""
    ms, what = floor(figures["ceilings"][str(group["threads"])], group["work"][name])
    return f"{100 * ms / group['times'][name]['ms']:.0f} % of {what}"


def number(value):
    """Three significant digits."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def milliseconds(value):
    return f"{value:.3f}" if value < 1 else number(value)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def goals(figures, overhead):
    rows = []
    for operation, shape, tokens, peer, least in GOALS:
        for group in figures["groups"]:
            same = (group["operation"], group["shape"], group["tokens"], group["inputs"], group["threads"])
            if same == (operation, shape, tokens, "normal", 2) and peer in group["times"]:
                found = ratio(group, peer)
                wanted, shown = (f"≥ {least:g} ×", f"{number(found)} ×") if least >= 1 else (f"≤ {1 / least:.2g} × its time", f"{1 / found:.2f} ×")
                rows.append((f"{operation}, {tuple(shape)}, {tokens} tokens", peer, wanted, f"{shown}{' ✓' if found >= least else ''}", reached(figures, group, base(group, peer))))
    for variant in (overhead or {}).get("per_decoded_token", []):
        if variant["what"] in (CAPTURE, f"{CAPTURE}, without the screen"):
            found = variant["ratio"]
            rows.append((f"{variant['what']}, in llama.cpp", "a decoded token without it", f"≤ {CAPTURE_MOST} ×", f"{found:.3f} ×{' ✓' if found <= CAPTURE_MOST else ''}", ""))
    return table(("operation", "beside", "aim", "found", "ours reaches"), rows)


def by_operation(groups):
    """Operations with their groups, each in the order that people read."""
    operation = lambda g: ORDER.index(g["operation"])  # noqa: E731
    place = lambda g: (operation(g), g["shape"], INPUTS.index(g["inputs"]), -g["threads"], g["tokens"])  # noqa: E731
    return ((ORDER[i], list(some)) for i, some in itertools.groupby(sorted(groups, key=place), operation))


def operations(figures):
    parts = []
    for operation, groups in by_operation(figures["groups"]):
        peers = [name for name in dict.fromkeys([*OWN, *PEERS]) if name != OURS and any(name in g["times"] for g in groups)]
        rows = []
        for g in groups:
            cells = [number(ratio(g, p)) if p in g["times"] else "" for p in peers]
            what = (str(tuple(g["shape"])), g["tokens"], g["inputs"], g["threads"])
            rows.append((*what, milliseconds(g["times"][OURS]["ms"]), reached(figures, g, OURS), *cells))
        parts.append(f"### {operation}\n\n" + table(("(d, n, k)", "tokens", "inputs", "threads", "libsae, ms", "of its ceiling", *peers), rows))
    return "\n".join(parts)


def scaling(figures):
    """Ours on one thread over ours on two."""
    key = lambda g: (g["operation"], tuple(g["shape"]), g["tokens"], g["inputs"])  # noqa: E731
    one = {key(g): g for g in figures["groups"] if g["threads"] == 1}
    rows = [
        (f"{key(g)[0]}, {key(g)[1]}, {key(g)[2]} tokens", milliseconds(one[key(g)]["times"][OURS]["ms"]), milliseconds(g["times"][OURS]["ms"]),
         f"{one[key(g)]['times'][OURS]['ms'] / g['times'][OURS]['ms']:.2f} ×")
        for g in figures["groups"] if g["threads"] == 2 and key(g) in one
    ]
    return table(("libsae", "1 thread, ms", "2 threads, ms", "faster"), rows)


def ceilings(figures):
    names = {"read_gb_s": "reading memory, GB/s", "update_gb_s": "reading and writing back, GB/s (of each)"}
    kinds = [k[:-6] for k in next(iter(figures["ceilings"].values())) if k.endswith("_gop_s")]
    threads = list(figures["ceilings"])
    rows = [(label, *(number(figures["ceilings"][t][name]) for t in threads)) for name, label in names.items()]
    for kind in kinds:
        instruction = figures["ceilings"][threads[0]][f"{kind}_instruction"]
        rows.append((f"{kind} products ({instruction}), 10⁹ operations/s", *(number(figures["ceilings"][t][f"{kind}_gop_s"]) for t in threads)))
    return table(("ceiling", *(f"{t} thread{'s' * (t != '1')}" for t in threads)), rows)


def page(figures, overhead, drawing):
    m, versions = figures["machine"], ", ".join(f"{k} {v}" for k, v in figures["versions"].items() if v)
    load = figures["load_average_before"]
    busy = f" **The machine had other work (load {load}): hold ratios loosely, and times not at all.**" if load > 0.5 else ""
    if not figures["complete"]:
        busy += " **The run was cut short.**"
    dead = [f"{name} {count}" for g in figures["groups"] for name, count in g.get("dead_latents", {}).items() if "dead" in g["operation"]]
    present = {name for g in figures["groups"] for name in g["times"]}
    left_out = "".join(f"- {x['operation']}, {tuple(x['shape'])}, {x['tokens']} tokens: {x['why']}\n" for x in figures["left_out"])
    return f"""{BEGIN}

{m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB; {figures['date']}, commit {figures['commit']}{' with changes' if figures['changed_since'] else ''}, `{figures['command']}`; {versions}.
Caches {figures['caches']}.{busy}

![ratios]({drawing})

{goals(figures, overhead)}
## Every figure

Columns of libsae and of peers alike say how often libsae's time goes into theirs: above 1, libsae at its defaults is faster. Trainers
that clip gradients are held against libsae's with clipping. "Of its ceiling": the least time that the operation's bytes or products
can take under the measured ceilings, over the time it took.

{operations(figures)}
{f"Dead latents at 5 %: {'; '.join(dead)}." if dead else ""}

## One thread and two

{scaling(figures)}
## Ceilings, measured in the same run

{ceilings(figures)}
## Who is beside us, and what each leaves out

{table(("", "what it is"), [(name, text) for name, text in PEERS.items() if name in present])}
{"Left out for want of memory:" + chr(10) + left_out if left_out else ""}
{END}"""


# ---- The drawing: a line for each group, a mark for each peer, on a logarithmic axis ----

MARKS = {  # colour, filled
    "torch f32": ("#2f7ed8", True), "torch embedding_bag": ("#2f7ed8", True), "torch bf16": ("#e07b00", True),
    "torch.compile f32": ("#2f7ed8", False), "torch.compile bf16": ("#e07b00", False),
    "sae-lens": ("#2e9e4f", True), "sae-lens, sparse": ("#2e9e4f", False), "sparsify": ("#a855c8", True), "sparsify, signum": ("#a855c8", False),
    "dictionary_learning": ("#c2413b", True), "dictionary_learning TopK": ("#c2413b", True), "dictionary_learning BatchTopK": ("#c2413b", False), READ: ("#8a8f98", True),
}
LABEL, LEFT, WIDTH, LINE = 8, 330, 900, 19
STYLE = """
 .back{fill:#fff} text{font:12px sans-serif;fill:#24292f} .head{font-weight:600} .small{font-size:11px;fill:#57606a}
 .grid{stroke:#d0d7de} .one{stroke:#57606a;stroke-width:1.5} .hollow{fill:#fff}
 @media (prefers-color-scheme: dark){.back{fill:#0d1117} text{fill:#e6edf3} .small{fill:#9198a1} .grid{stroke:#30363d} .one{stroke:#9198a1} .hollow{fill:#0d1117}}
"""


def drawing(figures):
    groups = [g for g in figures["groups"] if g["threads"] == 2]
    ratios = [ratio(g, p) for g in groups for p in g["times"] if p in MARKS]
    low, high = math.floor(math.log10(min([0.9, *ratios]))), math.ceil(math.log10(max([10, *ratios])))
    if min(ratios) > 0.5:
        low = math.log10(0.5)
    x = lambda r: LEFT + (math.log10(r) - low) / (high - low) * (WIDTH - LEFT - 20)  # noqa: E731
    wanted = {(o, tuple(s), t, p): least for o, s, t, p, least in GOALS if least >= 1}
    present = [p for p in MARKS if any(p in g["times"] for g in groups) and p != "torch embedding_bag"]
    body, y = [], 24
    body.append(f'<text class="head" x="{LABEL}" y="{y}">How many times as long as libsae others take (2 threads; right of 1: libsae is faster)</text>')
    column = 0
    for peer in present:  # the legend
        if column + 34 + 7 * len(peer) > WIDTH - 20 or not column:
            column, y = LABEL, y + 20
        body.append(mark(column + 5, y - 4, peer) + f'<text x="{column + 15}" y="{y}">{escape(peer)}</text>')
        column += 34 + 7 * len(peer)
    y += 20
    body.append(f'<path d="M{LABEL + 5} {y - 12}v12" stroke="currentColor" stroke-width="3" class="one"/><text x="{LABEL + 15}" y="{y}">what was aimed at, in the colour of the peer</text>')
    y += 14
    top, lines = y + 14, []
    for operation, some in by_operation(groups):
        y += 24
        lines.append(f'<text class="head" x="{LABEL}" y="{y}">{escape(operation)}</text>')
        for g in some:
            y += LINE
            inputs = "" if g["inputs"] == "normal" else f", {g['inputs']}"
            lines.append(f'<text class="small" x="{LABEL + 8}" y="{y}">{tuple(g["shape"])}, {g["tokens"]} token{"s" * (g["tokens"] > 1)}{inputs}</text>')
            lines.append(f'<path class="grid" d="M{LEFT} {y - 4}H{WIDTH - 20}" stroke-dasharray="1 4"/>')
            key = g["operation"], tuple(g["shape"]), g["tokens"]
            if g["inputs"] == "normal":
                lines += [f'<path d="M{x(wanted[*key, p]):.1f} {y - 11}v14" stroke="{MARKS[p][0]}" stroke-width="3"/>' for p in g["times"] if (*key, p) in wanted]
            lines += [mark(x(ratio(g, p)), y - 4, p, f"{p}: {number(ratio(g, p))} ×") for p in reversed(g["times"]) if p in MARKS]
    bottom = y + 10
    ticks = [m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5) if low - 1e-9 <= math.log10(m * 10.0**e) <= high + 1e-9]
    for t in ticks:
        body.append(f'<path class="{"one" if t == 1 else "grid"}" d="M{x(t):.1f} {top}V{bottom}"/>')
        body += [f'<text class="small" text-anchor="middle" x="{x(t):.1f}" y="{at}">{t:g}</text>' for at in (top - 4, bottom + 14)]
    height = bottom + 26
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"><style>{STYLE}</style>'
        f'<rect class="back" width="{WIDTH}" height="{height}"/>\n' + "\n".join(body + lines) + "\n</svg>\n"
    )


def mark(x, y, peer, title=""):
    colour, filled = MARKS[peer]
    fill = f'fill="{colour}"' if filled else 'class="hollow"'
    return f'<circle cx="{x:.1f}" cy="{y}" r="4.5" stroke="{colour}" stroke-width="1.8" {fill}>{f"<title>{escape(title)}</title>" if title else ""}</circle>'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path, help="what run.py wrote")
    parser.add_argument("--overhead", type=Path, help="what `make -C examples/llama_cpp overhead` wrote")
    parser.add_argument("--page", type=Path, required=True, help="Markdown with the markers")
    parser.add_argument("--drawing", type=Path, required=True, help="SVG, in the page's folder or one below it")
    arguments = parser.parse_args()
    figures = json.loads(arguments.figures.read_text())
    overhead = json.loads(arguments.overhead.read_text()) if arguments.overhead and arguments.overhead.exists() else None
    arguments.drawing.write_text(drawing(figures))
    text = arguments.page.read_text()
    made = page(figures, overhead, arguments.drawing.name)
    text, count = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: made, text, flags=re.S)
    if count != 1:
        raise SystemExit(f"{arguments.page}: {count} places between \"{BEGIN}\" and \"{END}\" were found, not one")
    arguments.page.write_text(text)


if __name__ == "__main__":
    main()
