"""Who may connect, and how much of the server one client may take."""
