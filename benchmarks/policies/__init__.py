"""What makes a policy succeed: runs that differ in one thing, trained for as long, played through the server.

::

    python -m benchmarks.policies few-step        targets and samplers against evaluations
    python -m benchmarks.policies denoisers       networks
    python -m benchmarks.policies seed            the seed's recipe beside ours, with its own head
    python -m benchmarks.policies recipe          what each part of the recipe is worth
    python -m benchmarks.policies chunks          horizon and executed actions

Every row is kept in a JSON as soon as it is played, and a row that is there is not played again.
"""
