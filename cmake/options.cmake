# What our own targets are compiled with; linked PRIVATE, never by third-party code.
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

add_library(nearbox_options INTERFACE)
target_include_directories(nearbox_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(
  nearbox_options
  INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wnon-virtual-dtor -Wold-style-cast
            $<$<BOOL:${NEARBOX_WERROR}>:-Werror>
            $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety -Werror=thread-safety>)
target_compile_definitions(nearbox_options INTERFACE _FILE_OFFSET_BITS=64 _GNU_SOURCE
                                                     NEARBOX_VERSION="${PROJECT_VERSION}")
if(NEARBOX_FAULT_POINTS)
  target_compile_definitions(nearbox_options INTERFACE NEARBOX_FAULT_POINTS=1)
endif()
if(NEARBOX_SANITIZE)
  target_compile_options(nearbox_options INTERFACE -fsanitize=${NEARBOX_SANITIZE} -fno-omit-frame-pointer
                                                   -fno-sanitize-recover=all)
  target_link_options(nearbox_options INTERFACE -fsanitize=${NEARBOX_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NEARBOX_SANITIZE MATCHES "address")
    target_compile_definitions(nearbox_options INTERFACE _GLIBCXX_ASSERTIONS=1)
    # As shared libraries libasan and libubsan share half of what they keep, and UBSan's log_path is in the other.
    target_link_options(nearbox_options INTERFACE -static-libasan -static-libubsan)
  endif()
endif()

# nearbox_library(name SOURCES … PUBLIC libs … PRIVATE libs …): one layer, one target.
function(nearbox_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  if(ARG_SOURCES)
    add_library(${name} STATIC ${ARG_SOURCES})
    target_link_libraries(${name} PUBLIC ${ARG_PUBLIC} PRIVATE nearbox_options ${ARG_PRIVATE})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE ${ARG_PUBLIC})
  endif()
endfunction()
