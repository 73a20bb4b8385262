"""Kill campaigns on real servers: a worker is killed at random moments, and what came of it is judged from outside.

In: servers, a day up to which flights are sent, a seed. Out: a `Result` with recovery times and verdicts. Invariant: a
campaign has topics, keys and group of its own, so that several share the servers without meeting.

`stream` gives an app a name and records, `processes` starts and kills workers, `judging` compares what they left,
`campaign` is all of that in order; `mutant_worker` is a worker with one guard taken away.
"""
