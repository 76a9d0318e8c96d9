"""The registry: versions, moves of the champion, the gate run on real versions."""
