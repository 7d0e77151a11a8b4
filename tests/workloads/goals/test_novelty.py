import numpy as np

from farreach_workloads.goals.novelty import BestNode


def sequential(points, nodes, capacity, slots):
    """The filter one candidate at a time: cover is minus the distance, threshold -1."""
    nodes, nearest, overwritten = dict(enumerate(nodes)), [], []
    for position, point in enumerate(points):
        cover = {slot: -abs(point - node) for slot, node in nodes.items()}
        best = max(cover, key=lambda slot: (cover[slot], -slot))
        if cover[best] < -1:
            best = len(nodes) if len(nodes) < capacity else next(slots)
            if best in nodes:
                overwritten.append((best, position))
            nodes[best] = point
        nearest.append(best)
    return nodes, nearest


def vectorised(points, nodes, capacity, slots):
    table = np.full(capacity, np.nan)
    table[: len(nodes)] = nodes
    count = len(nodes)
    track = BestNode(
        lambda rows, columns: -np.abs(points[rows][:, None] - table[columns][None, :]),
        len(points),
        count,
    )
    position = -1
    while (position := track.next_below(-1, position)) >= 0:
        slot = count if count < capacity else next(slots)
        count = max(count, slot + 1)
        table[slot] = points[position]
        track.placed(slot, position, count)
    return dict(enumerate(table[:count])), track.slot.tolist()


def test_the_vectorised_filter_equals_the_sequential_one_while_there_is_room():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.uniform(0, 30, 300).astype(np.float32)
        start = [points[0]]
        one, other = (f(points, start, 300, iter(())) for f in (sequential, vectorised))
        assert one == other
        assert 8 < len(one[0]) < 31


def test_the_vectorised_filter_equals_the_sequential_one_when_nodes_are_overwritten():
    rng = np.random.default_rng(1)
    for _ in range(20):
        points = rng.uniform(0, 30, 200).astype(np.float32)
        slots = rng.integers(1, 6, 400).tolist()
        one = sequential(points, [points[0]], 6, iter(slots))
        other = vectorised(points, [points[0]], 6, iter(slots))
        assert one == other
