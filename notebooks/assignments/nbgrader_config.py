"""How nbgrader treats the assignments: read by every ``nbgrader`` command given in this folder."""

c = get_config()  # noqa: F821  nbgrader defines it

c.CourseDirectory.course_id = "visual-anomaly-detection"
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
c.ClearSolutions.text_stub = "*YOUR ANSWER HERE*"
c.Execute.timeout = 300  # seconds a cell may take, so that an endless loop holds up nobody else
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = "(?s).*"  # or a warning in a test cell would cost all of its points
