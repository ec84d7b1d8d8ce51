"""What runs compute, recorded by one version of the package and compared with another's, bit for bit.

python -m tests.reference_outputs record OUT [--only CASE ...]
python -m tests.reference_outputs compare A B [--only CASE ...]
"""
