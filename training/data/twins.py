"""Objects that stand in a data set twice, byte for byte, under two names."""

from collections import defaultdict

from fruitstand.manifest import ManifestRow


def without_twins(rows: list[ManifestRow]) -> tuple[list[ManifestRow], list[dict[str, object]]]:
    """Drop objects whose every image stands byte for byte in another object's folder.

    Fruits-360 has such twins. Two classes of them cannot be told apart, and one in Training with its twin in
    Test tells the answers. Of two, the one that is in Test alone stays, else the alphabetically first.

    Returns:
        The rows that stay; for each dropped object its name, its class, whose twin it is, and its images.
    """
    files: dict[str, set[str]] = defaultdict(set)
    labels: dict[str, str] = {}
    trained: set[str] = set()
    for row in rows:
        files[row.object].add(row.sha256)
        labels[row.object] = row.label
        if row.split != "test":
            trained.add(row.object)
    owners: dict[str, list[str]] = defaultdict(list)
    twins: list[dict[str, object]] = []
    for name in sorted(files, key=lambda name: (name in trained, name)):
        candidates = set.intersection(*(set(owners[digest]) for digest in files[name]))
        if candidates:
            twins.append(
                {
                    "object": name,
                    "label": labels[name],
                    "same_as": min(candidates),
                    "num_images": len(files[name]),
                }
            )
        else:
            for digest in files[name]:
                owners[digest].append(name)
    dropped = {twin["object"] for twin in twins}
    return [row for row in rows if row.object not in dropped], twins
