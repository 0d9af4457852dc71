"""The accuracies that Menet et al. (2023) report, in percent: mean and standard deviation over five seeds, by preset and n."""

Reported = dict[str, tuple[float, float | None]]
"""Mean, and standard deviation if reported, for each n as text."""


def table1_column(prefix: str, rows: dict[str, tuple[float, float]]) -> dict[str, Reported]:
    """Return a column of Table 1 by preset, from rows named NETWORK@N."""
    found: dict[str, Reported] = {}
    for row, values in rows.items():
        name, _, n = row.partition("@")
        found.setdefault(f"{prefix}_{name}", {})[n] = values
    return found


def table2_row(size: str, model: str, n: int, row: str) -> dict[str, Reported]:
    """Return a row of Table 2 by preset, from its text as printed."""
    cells = zip(("listops", "text", "retrieval", "image", "pathfinder"), row.split(), strict=True)
    pairs = {task: tuple(map(float, cell.split("±"))) for task, cell in cells}
    return {f"{task}_{size}_{model}": {str(n): (mean, std)} for task, (mean, std) in pairs.items()}


PAPER: dict[str, Reported] = {
    **table1_column(
        "cifar10",
        {
            "wide_resnet@1": (96.82, 0.06),
            "wide_isonet@1": (97.31, 0.11),
            "mimoconv_n1@1": (97.49, 0.08),
            "mimoconv_n2@2": (96.93, 0.13),
            "mimoconv_n4@4": (95.58, 0.23),
            "mimoconv_dynamic@1": (97.13, 0.11),
            "mimoconv_dynamic@2": (96.41, 0.14),
            "mimoconv_dynamic@4": (95.43, 0.07),
        },
    ),
    **table1_column(
        "cifar100",
        {
            "wide_resnet@1": (81.62, 0.07),
            "wide_isonet@1": (82.38, 0.20),
            "mimoconv_n1@1": (83.19, 0.17),
            "mimoconv_n2@2": (82.30, 0.19),
            "mimoconv_n4@4": (78.44, 0.30),
            "mimoconv_dynamic@1": (82.52, 0.09),
            "mimoconv_dynamic@2": (80.48, 0.08),
            "mimoconv_dynamic@4": (78.19, 0.10),
        },
    ),
    # these come from the text and from Figure 4, which give no standard deviation
    **{f"svhn_mimoconv_n{n}": {str(n): (mean, None)} for n, mean in ((1, 97.17), (2, 97.05), (4, 96.84))},
    "mnist_mimoconv_n16": {"16": (80.4, None)},
    "mnist_datamux_n16": {"16": (52.9, None)},
    **table2_row("deep", "performer", 1, "38.94±0.23 65.70±0.31 81.58±0.18 40.14±0.86 73.82±0.78"),
    **table2_row("deep", "n2_att", 2, "38.08±0.21 65.00±0.28 79.37±0.81 38.21±0.63 72.36±0.54"),
    **table2_row("deep", "n2_att_mlp", 2, "37.65±0.33 64.39±0.22 76.02±0.27 33.85±0.55 67.98±0.47"),
    **table2_row("deep", "n4_att", 4, "37.22±0.33 64.59±0.14 60.99±9.06 28.16±0.08 55.50±4.95"),
    **table2_row("deep", "n4_att_curriculum", 4, "37.64±0.73 64.46±0.15 74.38±0.82 30.52±0.77 67.10±0.45"),
    **table2_row("deep", "n4_att_mlp", 4, "17.74±0.63 60.71±5.14 72.20±0.28 24.01±0.47 50.33±0.16"),
    **table2_row("wide", "performer", 1, "39.40±0.51 65.73±0.32 83.67±0.25 41.67±0.44 74.11±0.33"),
    **table2_row("wide", "n2_att", 2, "38.90±0.53 65.39±0.18 81.27±0.28 40.25±0.21 73.51±0.23"),
    **table2_row("wide", "n2_att_mlp", 2, "37.59±0.17 64.64±0.25 78.30±0.32 36.69±0.76 68.22±0.18"),
    **table2_row("wide", "n4_att", 4, "37.71±0.24 64.22±0.14 74.99±0.36 35.43±0.60 69.52±0.40"),
    **table2_row("wide", "n4_att_curriculum", 4, "37.68±0.36 64.56±0.25 76.37±0.50 35.53±0.48 73.37±0.22"),
    **table2_row("wide", "n4_att_mlp", 4, "18.52±0.98 63.53±0.12 74.30±0.26 26.54±0.28 56.33±0.17"),
    "listops_deep_datamux_n2": {"2": (30.54, None)},
    "recall_transformer": {"1": (98.48, 1.87)},
    "recall_performer": {"1": (96.32, 6.26)},
    "recall_n2_att": {"2": (96.52, 2.79)},
    "recall_n2_att_dpfp": {"2": (93.64, 12.66)},
    "recall_datamux_n2": {"2": (20.04, 1.72)},
    "induction_transformer": {"1": (100.0, 0.0)},
    "induction_performer": {"1": (31.58, 33.67)},
    "induction_n2_att": {"2": (99.40, 0.13)},
    "induction_n2_att_dpfp": {"2": (98.56, 0.86)},
    "induction_datamux_n2": {"2": (6.06, 2.24)},
}
