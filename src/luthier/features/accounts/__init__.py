"""Keys, members, projects and sign-in, as commands, routes and pages."""
