"""From a finished run to its scores, tables, figures and logs; host side, nothing here trains."""
