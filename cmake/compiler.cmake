# Language level and warnings for all of our C++.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
# -O3 vectorises; no assertion may vanish with NDEBUG because none checks input.
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")
if(LAMINA_SANITIZE)
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -g1 -DNDEBUG")
endif()

# ccache where it is installed, unless the environment or -D names a launcher. Paths count from the root of the tree,
# so another clone, the sanitized build and the trees of planted bugs find what was compiled before.
find_program(LAMINA_CCACHE ccache)
if(LAMINA_CCACHE)
  foreach(language CXX CUDA)
    if(NOT DEFINED CMAKE_${language}_COMPILER_LAUNCHER AND NOT DEFINED ENV{CMAKE_${language}_COMPILER_LAUNCHER})
      set(CMAKE_${language}_COMPILER_LAUNCHER
        ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_CURRENT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${LAMINA_CCACHE})
    endif()
  endforeach()
endif()

add_library(lamina_flags INTERFACE)
target_include_directories(lamina_flags INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
# Contraction would round differently on an ISA with FMA. Neither of the other two changes a value.
target_compile_options(lamina_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wconversion
  -Wno-sign-conversion -ffp-contract=off -fno-math-errno -fno-trapping-math>)
# GCC 12 reports std::string operator+ as overlapping memcpy: gcc.gnu.org PR 105651.
target_compile_options(lamina_flags INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
if(LAMINA_WERROR)
  target_compile_options(lamina_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(LAMINA_SANITIZE)
  target_compile_options(lamina_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined -fno-sanitize-recover=all>)
  target_link_options(lamina_flags INTERFACE -fsanitize=address,undefined)
endif()
