nearbox_library(nearbox_agent_procs
  SOURCES id_map.cpp login_env.cpp passwd.cpp proc_feed.cpp proc_groups.cpp proc_loop.cpp proc_orphans.cpp proc_pty.cpp proc_ring.cpp proc_spawn.cpp proc_spec.cpp proc_stdin.cpp
          proc_table.cpp small_file.cpp start_marker.cpp
  PUBLIC nearbox_wire nearbox_base)
