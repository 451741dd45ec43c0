"""Side-by-side measurements of Veneer and the libraries people use today; `python -m benchmarks` lists them."""
