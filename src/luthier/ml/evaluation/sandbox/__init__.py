"""A sandboxed child process for model-generated code: Python with tests, and SQL.

parent (`process`)                        child (`python -P -s -S`, no environment, its own empty folder), where
                                          `bubblewrap` runs within it, else without
   |-- policy: what it may do ------------> `inside.lock`: limits, namespaces, Landlock, seccomp; for good
   |-- answer ----------------------------> runs it
   |-- tests, only now -------------------> runs them
   |<------------------------- one line --- its result
   '-- at the deadline: SIGKILL to its group
"""
