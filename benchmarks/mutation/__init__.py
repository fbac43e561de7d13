"""Do the tests notice deliberate faults?  ``python -m benchmarks.mutation`` or ``make mutants``.

Each mutant is one small fault put into a throw-away copy of the checkout; the tests that guard the
file must then fail.  There are two kinds:

* by hand, ``tests/mutation/*.toml``: the pitfalls of each rule's specification, one
  ``[[mutant]]`` entry each with ``file``, ``find`` (text that occurs exactly once in it),
  ``replace``, ``why``, and optionally ``tests``;
* mechanical: a fixed sample of what the operators of Cosmic Ray (``OPERATORS`` in operators.py)
  make of the files in ``tests/mutation/plan.toml``.  There are never fewer of them than by hand.

Mechanical mutants that no test can notice are declared in ``tests/mutation/equivalent.toml`` with
the reason, checked to be still there, and left out of the sample.

``plan.toml`` says which tests guard which file, in stages (a line of paths each): the next is run
only if a mutant outlived the one before.  Exit status: 0; 1 if too few mutants are killed; 2 if the check could not be made.
"""
