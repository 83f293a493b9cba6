"""Two drawings in SVG: dots in columns, one for each seed with their mean, and lines over a logarithmic axis."""

import math
from xml.sax.saxutils import escape

STYLE = """
 .back{fill:#fff} text{font:12px sans-serif;fill:#24292f} .head{font-size:14px;font-weight:600} .small{font-size:11px;fill:#57606a} .grid{stroke:#d0d7de}
 @media (prefers-color-scheme: dark){.back{fill:#0d1117} text{fill:#e6edf3} .small{fill:#9198a1} .grid{stroke:#30363d}}
"""
COLOURS = ("#1b6ca8", "#d1495b", "#2e9e4f", "#a855c8", "#e07b00", "#0d9488", "#8a6d3b", "#64748b")
HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 56, 16, 48, 58


def text(x, y, content, anchor="middle", kind="", colour=None):
    fill = f' style="fill:{colour}"' if colour else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{fill}>{escape(content)}</text>'


def line(x1, y1, x2, y2, style):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


class Panel:
    """A rectangle with a title, a linear axis upwards, and room below for names."""

    def __init__(self, left, width, title, values, percent=False):
        self.left, self.width, self.title, self.percent = left + LEFT, width - LEFT - RIGHT, title, percent
        low, high = min(values), max(values)
        # An axis starts at 0, unless all would lie in its upper third.
        low = 0 if low < 0.67 * high else low - 0.2 * (high - low or high)
        step = 10 ** math.floor(math.log10((high - low) / 3)) if high > low else 1
        self.step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
        self.low = math.floor(low / self.step) * self.step
        self.high = max(high * 1.02, self.low + self.step)

    def y(self, value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low)

    def frame(self):
        parts = [text(self.left - LEFT + 8, 24, self.title, "start", "head")]
        for i in range(int((self.high - self.low) / self.step + 1e-9) + 1):
            value = self.low + i * self.step
            digits = max(0, -math.floor(math.log10(self.step)) - (2 if self.percent else 0))
            label = f"{100 * value:.{digits}f} %" if self.percent else f"{value:.{digits}f}"
            parts += [line(self.left, self.y(value), self.left + self.width, self.y(value), 'class="grid"'), text(self.left - 6, self.y(value) + 4, label, "end", "small")]
        return parts


def svg(width, parts):
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}"><style>{STYLE}</style>',
        f'<rect class="back" width="{width}" height="{HEIGHT}"/>', *parts, "</svg>", "",
    ])


def columns(panels):
    """`panels`: (title, {group: {name: [a value for each seed]}}, percent). Names have the same colours in all."""
    names = list(dict.fromkeys(name for _, groups, _ in panels for group in groups.values() for name in group))
    parts, left = [], 0
    for title, groups, percent in panels:
        count = sum(map(len, groups.values()))
        width = max(LEFT + RIGHT + 74 * count, 9 * len(title))
        panel = Panel(left, width, title, [v for group in groups.values() for values in group.values() for v in values], percent)
        parts += panel.frame()
        slot, at = panel.width / count, 0
        for group, members in groups.items():
            parts.append(text(panel.left + slot * (at + len(members) / 2), HEIGHT - 12, group, kind="small"))
            for name, values in members.items():
                x, colour, mean = panel.left + slot * (at + 0.5), COLOURS[names.index(name) % len(COLOURS)], sum(values) / len(values)
                parts.append(line(x - 22, panel.y(mean), x + 22, panel.y(mean), f'stroke="{colour}" stroke-width="2"'))
                parts += [f'<circle cx="{x + 12 * (i - (len(values) - 1) / 2):.1f}" cy="{panel.y(v):.1f}" r="3.5" fill="{colour}"/>' for i, v in enumerate(values)]
                parts += [text(x, HEIGHT - BOTTOM + 16 + 13 * i, word, kind="small", colour=colour) for i, word in enumerate(name.replace("_", "_ ").split())]
                at += 1
        left += width
    return svg(left, parts)


def curves(panels):
    """`panels`: (title, what x is, {name: [(x, y)]}), x on a logarithmic axis."""
    names, width = list(dict.fromkeys(name for _, _, lines in panels for name in lines)), 420
    parts = []
    for i, (title, axis, lines) in enumerate(panels):
        panel = Panel(i * width, width, title, [y for points in lines.values() for _, y in points])
        xs = [x for points in lines.values() for x, _ in points]
        low, high = math.log(min(xs) / 1.15), math.log(max(xs) * 1.15)
        at = lambda x: panel.left + panel.width * (math.log(x) - low) / (high - low)  # noqa: E731
        parts += panel.frame()
        for tick in (2**power for power in range(1, 18)):
            if low <= math.log(tick) <= high:
                parts += [line(at(tick), TOP, at(tick), HEIGHT - BOTTOM, 'class="grid"'), text(at(tick), HEIGHT - BOTTOM + 16, str(tick), kind="small")]
        parts.append(text(panel.left + panel.width / 2, HEIGHT - BOTTOM + 34, axis, kind="small"))
        for name, points in lines.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            path = " ".join(f"{at(x):.1f},{panel.y(y):.1f}" for x, y in sorted(points))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts += [f'<circle cx="{at(x):.1f}" cy="{panel.y(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
    for i, name in enumerate(names):
        x = LEFT + i * (width * len(panels) - LEFT) / len(names)
        parts += [f'<circle cx="{x:.1f}" cy="{HEIGHT - 12}" r="4" fill="{COLOURS[i % len(COLOURS)]}"/>', text(x + 8, HEIGHT - 8, name, "start", "small")]
    return svg(width * len(panels), parts)
