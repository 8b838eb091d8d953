"""The jobs of a web shop: mail, invoices and reports."""
