# Debian packages, see .ci/packages. Static where the program must start without the library.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(CURL 7.81 REQUIRED)
find_package(nlohmann_json 3.10 REQUIRED)

# nearbox_static(target pkg archive): an imported static library, named by its pkg-config package.
function(nearbox_static target pkg archive)
  pkg_check_modules(${target}_PC REQUIRED ${pkg})
  find_library(${target}_ARCHIVE ${archive} HINTS ${${target}_PC_LIBRARY_DIRS} REQUIRED)
  add_library(${target} STATIC IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION ${${target}_ARCHIVE})
  if(${target}_PC_INCLUDE_DIRS)
    target_include_directories(${target} SYSTEM INTERFACE ${${target}_PC_INCLUDE_DIRS})
  endif()
endfunction()

nearbox_static(dep_fuse3 fuse3 libfuse3.a)
target_link_libraries(dep_fuse3 INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
nearbox_static(dep_zstd libzstd libzstd.a)
nearbox_static(dep_xxhash libxxhash libxxhash.a)
nearbox_static(dep_sqlite sqlite3 libsqlite3.a)
target_link_libraries(dep_sqlite INTERFACE m Threads::Threads ${CMAKE_DL_LIBS})
nearbox_static(dep_nettle nettle libnettle.a)
