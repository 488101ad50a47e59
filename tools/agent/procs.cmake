nearbox_library(nearbox_agent_procs
  SOURCES login_env.cpp proc_pty.cpp proc_ring.cpp proc_spawn.cpp proc_spec.cpp proc_stdin.cpp
  PUBLIC nearbox_wire nearbox_base)
