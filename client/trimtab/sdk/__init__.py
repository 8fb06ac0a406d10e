"""The two clients: they connect to a server and perform the steps that trimtab.core decides on."""
