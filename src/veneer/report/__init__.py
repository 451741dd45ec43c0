"""Tables, plots and one self-contained HTML page out of run records.

    from veneer.report.summary import summarize        records -> one MethodSummary per method
    from veneer.report.verdict import headline         the comparison in plain words
    from veneer.report.terminal import results_table   the summary as a table for the console
    from veneer.report.page import render_page         the summary, plots and recipe as one HTML page

Nothing here trains, measures or reads a model; every figure comes out of `veneer.results`. Only `page` loads
matplotlib and jinja2, so the console table stays quick.
"""
