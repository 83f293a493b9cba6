"""The result as a picture: one point per seed, one column per trainer and number of passes, PCA as a line."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 340, 64, 20, 48, 56
COLOURS = {"libsae": "#1b6ca8", "plain PyTorch": "#d1495b"}


def svg(results):
    runs, pca = results["runs"], results["pca_fvu"]
    columns = [(passes, trainer) for passes in results["passes"] for trainer in COLOURS]
    top = 1.1 * max([pca] + [run["fvu"] for run in runs])

    def y(fvu):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * fvu / top

    def x(column):
        return LEFT + (WIDTH - LEFT - RIGHT) * (column + 0.5) / len(columns)

    def text(x, y, content, size=12, anchor="middle", fill="#222"):
        return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{content}</text>'

    def line(x1, y1, x2, y2, style):
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(LEFT, 24, "Held-out fraction of variance unexplained (lower is better)", 14, "start"),
    ]
    for tick in range(int(top * 20) + 1):
        parts.append(line(LEFT, y(tick / 20), WIDTH - RIGHT, y(tick / 20), 'stroke="#e4e4e4"'))
        parts.append(text(LEFT - 8, y(tick / 20) + 4, f"{tick / 20:.2f}", 11, "end"))
    parts.append(line(LEFT, y(pca), WIDTH - RIGHT, y(pca), 'stroke="#777" stroke-dasharray="5 4"'))
    parts.append(text(WIDTH - RIGHT, y(pca) - 6, f"PCA, rank {results['k']}: {pca:.3f}", 11, "end", "#555"))
    for column, (passes, trainer) in enumerate(columns):
        values = [run["fvu"] for run in runs if (run["passes"], run["trainer"]) == (passes, trainer)]
        if not values:
            continue
        mean = sum(values) / len(values)
        parts.append(line(x(column) - 34, y(mean), x(column) + 34, y(mean), f'stroke="{COLOURS[trainer]}" stroke-width="2"'))
        parts += [
            f'<circle cx="{x(column) - 18 + 18 * seed:.1f}" cy="{y(value):.1f}" r="4" fill="{COLOURS[trainer]}"/>'
            for seed, value in enumerate(values)
        ]
        parts.append(text(x(column), y(mean) - 12, f"{mean:.3f}"))
        parts.append(text(x(column), HEIGHT - BOTTOM + 20, trainer, fill=COLOURS[trainer]))
        parts.append(text(x(column), HEIGHT - BOTTOM + 38, f"{passes} pass{'es' if passes > 1 else ''}", 11))
    return "\n".join(parts + ["</svg>", ""])
