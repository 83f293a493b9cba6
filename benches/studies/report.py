"""What the studies found, as tables between the markers of docs/quality.md and as drawings beside it: of all runs that are there, finished or not.

--keep writes into docs and benches/results; without it, into build/studies.
"""

import argparse
import collections
import json
import re
import statistics

import draw
import runs
from recipes import COUNTED, WIDTHS

HEAD_PLANTED = (
    "recipe", "trainer", "rate", "seeds", "MCC", "F1", "precision", "recall", "uniqueness", "explained variance", "L0", "processor seconds",
    "F1 by the rates tried",
)
FOLDER = runs.ROOT / "build" / "studies"


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def spread(values, digits=3, percent=False):
    """The mean, and how far the seeds lie from it."""
    scale, unit = (100, " %") if percent else (1, "")
    mean = statistics.fmean(values)
    reach = max(abs(v - mean) for v in values)
    return f"{scale * mean:.{digits}f}{unit}" + (f" ± {scale * reach:.{digits}f}" if len(values) > 1 else "")


def grouped(results, *fields):
    groups = collections.defaultdict(list)
    for r in results:
        groups[tuple(r["spec"][field] for field in fields)].append(r)
    return dict(groups)


def of(results, quantity):
    return [r[quantity] for r in results]


def planted(results):
    chosen, rates = {}, {}
    for (recipe, trainer), mine in grouped(results, "recipe", "trainer").items():
        tried = [r for r in mine if r["spec"]["seed"] == 0]
        rate = max(tried, key=lambda r: r["f1"])["spec"]["rate"]
        rates[recipe, trainer] = ", ".join(f"{r['spec']['rate']:g}: {r['f1']:.3f}" for r in sorted(tried, key=lambda r: r["spec"]["rate"]))
        chosen[recipe, trainer] = sorted((r for r in mine if r["spec"]["rate"] == rate), key=lambda r: r["spec"]["seed"])
    rows = [
        (recipe, trainer, f"{mine[0]['spec']['rate']:g}", len(mine), *(spread(of(mine, q)) for q in ("mcc", "f1", "precision", "recall", "uniqueness", "explained_variance")),
         spread(of(mine, "l0"), 1), spread(of(mine, "cpu_seconds"), 0), rates[recipe, trainer])
        for (recipe, trainer), mine in sorted(chosen.items(), key=lambda item: (COUNTED.index(item[0][0]), item[0][1]))
    ]
    if len({trainer for _, trainer in chosen}) < 2:
        return table(HEAD_PLANTED, rows), None  # nothing to compare yet
    panels = []
    for quantity, title in (("mcc", "MCC (higher is better)"), ("f1", "F1 (higher is better)")):
        groups = collections.defaultdict(dict)
        for (recipe, trainer), mine in sorted(chosen.items(), key=lambda item: (COUNTED.index(item[0][0]), item[0][1])):
            groups[recipe][trainer] = of(mine, quantity)
        panels.append((title, groups, False))
    return table(HEAD_PLANTED, rows), draw.columns(panels)


def auxk(results):
    groups = grouped(results, "model", "tokens", "aux")
    rows = [
        (model, f"{tokens:,}", aux, len(mine), spread(of(mine, "never_fire"), 2, True), spread([r["dead_at_the_end"] / r["n"] for r in mine], 2, True),
         spread(of(mine, "fvu")), f"{min(of(mine, 'held_out_rows')):,}", f"{max(of(mine, 'held_out_rows_of_training_documents')):,}")
        for (model, tokens, aux), mine in sorted(groups.items())
    ]
    panels = collections.defaultdict(dict)
    for (model, tokens, aux), mine in sorted(groups.items()):
        panels[f"{model}, {tokens:,} tokens"][{"AuxK": "with AuxK", "none": "without"}[aux]] = of(mine, "never_fire")
    head = ("model", "tokens", "", "seeds", "never fire, held out", "counted dead at the end", "FVU", "rows held out", "of these, of the training's documents")
    return table(head, rows), draw.columns([("Latents that never fire (lower is better)", panels, True)])


def real(results):
    results = [r for r in results if "fvu" in r]
    if not results:
        return "", None
    spliced = json.loads(path.read_text())["saes"] if (path := FOLDER / "ce.json").exists() else {}
    for r in results:
        r["recovered"] = r.get("recovered", spliced.get(runs.name_of(r["spec"]), {}).get("recovered"))
    groups = grouped(results, "model", "tokens", "trainer")
    rows, panels = [], collections.defaultdict(dict)
    for (model, tokens, trainer), mine in sorted(groups.items()):
        recovered = [r["recovered"] for r in mine if r["recovered"] is not None]
        rows.append((
            model, f"{tokens:,}", trainer, f"{mine[0]['spec']['rate']:g}", len(mine), spread(of(mine, "fvu"), 4), spread(recovered, 2, True) if recovered else "not measured",
            spread(of(mine, "never_fire"), 1, True), spread(of(mine, "seconds"), 0), spread(of(mine, "cpu_seconds"), 0), spread(of(mine, "peak_mib"), 0),
        ))
        panels[f"{model}, {tokens:,} tokens"][trainer] = of(mine, "fvu")
    head = ("model", "tokens", "trainer", "rate", "seeds", "FVU", "CE recovered", "never fire", "wall seconds", "processor seconds", "peak MiB")
    return table(head, rows), draw.columns([("Held-out FVU (lower is better)", panels, False)])


def recipes(results):
    rows = [
        (s["recipe"], s["n"], s["k_or_coefficient"], f"{s['tokens']:,}", f"{r['l0']:.1f}", f"{r['fvu']:.4f}", f"{100 * r['never_fire']:.1f} %", f"{r['cpu_seconds']:.0f}")
        for r in results for s in [r["spec"]]
    ]
    tokens = max(r["spec"]["tokens"] for r in results)
    by_n, by_k = collections.defaultdict(list), collections.defaultdict(list)
    for r in (r for r in results if r["spec"]["tokens"] == tokens):
        s = r["spec"]
        middle = 32 if s["recipe"] in COUNTED else None
        if s["n"] == WIDTHS[1]:
            by_k[s["recipe"]].append((r["l0"], r["fvu"]))
        if middle is None or s["k_or_coefficient"] == middle:
            by_n[s["recipe"]].append((s["n"], r["fvu"], r["l0"]))
    # Recipes with a penalty have another L0 at each n, so a line over n would compare different things.
    by_n = {name: [(n, fvu) for n, fvu, _ in points] for name, points in by_n.items() if name in COUNTED}
    panels = [("FVU against L0, n = 4608", "mean active latents", by_k)]
    panels += [("FVU against n, k = 32", "latents", by_n)] if by_n else []
    head = ("recipe", "n", "k, or coefficient", "tokens", "L0", "FVU", "never fire", "processor seconds")
    return table(head, rows), draw.curves(panels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true")
    keep = parser.parse_args().keep
    docs = runs.ROOT / "docs"
    page = (docs / "quality.md").read_text()
    for study, make in {"planted": planted, "auxk": auxk, "real": real, "recipes": recipes}.items():
        results = list(runs.finished(study, FOLDER).values())
        figures, drawing = make(results) if results else ("", None)
        if not figures:
            continue
        name = f"quality-{study}.svg"
        dates, commits = (sorted({r[key] for r in results}) for key in ("date", "commit"))
        made = f"{len(results)} run{'s' * (len(results) > 1)} so far, {dates[0]}{f' to {dates[-1]}' if len(dates) > 1 else ''}, commit {', '.join(commits)}; `{results[0]['command']}`.\n"
        body = f"\n{made}\n" + (f"![{study}]({name})\n\n" if drawing else "") + figures
        begin, end = f"<!-- {study}: made by benches/studies/report.py -->", f"<!-- end of {study} -->"
        page, found = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n{body}\n{end}", page, flags=re.S)
        assert found == 1, f"docs/quality.md has no place for {study}"
        if drawing:
            ((docs if keep else FOLDER) / name).write_text(drawing)
        if keep:
            runs.write(runs.ROOT / "benches" / "results" / f"{study}.json", {"runs": results})
    ((docs if keep else FOLDER) / "quality.md").write_text(page)


if __name__ == "__main__":
    main()
