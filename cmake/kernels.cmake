# CUDA kernels as sources, from the rows LAMINA_CUDA_KERNEL(op, name, config) of csrc/ops/<folder>/kernels.inc. The prefix
# of the name is the arch: the kernel is the template <arch>_kernel in cuda/<arch>.cuh, for the Config <Arch>Config. In a
# folder of several ops named <folder>_<part>, a part with templates of its own has <part>_<arch>.cuh, <part>_<arch>_kernel
# and <Part><Arch>Config.

# Kernels of an op and arch that share a source. The headers take half of the time of a source with one kernel.
set(LAMINA_KERNELS_OF_SOURCE 3)

# lamina_camel_case(NAME OUT): gemm_int8 becomes GemmInt8.
function(lamina_camel_case name out)
  string(REPLACE "_" ";" words ${name})
  set(all "")
  foreach(word IN LISTS words)
    string(SUBSTRING ${word} 0 1 first)
    string(SUBSTRING ${word} 1 -1 rest)
    string(TOUPPER ${first} first)
    string(APPEND all ${first}${rest})
  endforeach()
  set(${out} ${all} PARENT_SCOPE)
endfunction()

# lamina_cuda_kernels(FOLDER SUFFIX ARCHS ONLY OUT): writes the kernels of these archs as FOLDER/<op>_<arch>_<number>.SUFFIX,
# and for each op the function that lists them; OUT becomes the files. ONLY: the names <op>_<name> to write; all if it is empty.
function(lamina_cuda_kernels folder suffix archs only out)
  set(files "")
  set(unknown ${only})
  file(GLOB lists CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/ops/*/kernels.inc)
  foreach(list IN LISTS lists)
    # Another row is another file: a change of the list configures anew.
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${list})
    get_filename_component(space ${list} DIRECTORY)
    get_filename_component(space ${space} NAME)
    file(STRINGS ${list} rows REGEX "^LAMINA_CUDA_KERNEL\\([a-z0-9_]+, [a-z0-9_]+, ")
    set(ops "")
    set(sources "")
    foreach(row IN LISTS rows)
      string(REGEX REPLACE "^LAMINA_CUDA_KERNEL\\(([a-z0-9_]+), (([a-z0-9]+)_[a-z0-9_]+), (.*)\\)$" "\\1;\\2;\\3;\\4" parts "${row}")
      list(POP_FRONT parts op name arch config)
      list(REMOVE_ITEM unknown ${op}_${name})
      if(NOT arch IN_LIST archs OR (only AND NOT ${op}_${name} IN_LIST only))
        continue()
      endif()
      string(REGEX REPLACE "^${space}_?" "" template ${op}_${arch})
      if(NOT EXISTS ${PROJECT_SOURCE_DIR}/csrc/ops/${space}/cuda/${template}.cuh)
        set(template ${arch})
      endif()
      lamina_camel_case(${template} camel)
      list(APPEND names_${op}_${arch} ${name})
      list(LENGTH names_${op}_${arch} count)
      math(EXPR number "(${count} - 1) / ${LAMINA_KERNELS_OF_SOURCE}")
      set(source ${op}_${arch}_${number})
      list(APPEND sources ${source})
      set(header_${source} ops/${space}/cuda/${template}.cuh)
      string(APPEND body_${source} "
CudaKernel ${op}_${name}() {
  return ${template}_kernel<${camel}Config{${config}}>(\"${op}_${name}\");
}
")
      list(APPEND ops ${op})
      string(APPEND declared_${op} "CudaKernel ${op}_${name}();\n")
      string(APPEND listed_${op} "      ${op}_${name}(),\n")
    endforeach()
    list(REMOVE_DUPLICATES sources)
    foreach(source IN LISTS sources)
      set(file ${folder}/${source}.${suffix})
      file(CONFIGURE OUTPUT ${file} CONTENT "// Written by CMake from csrc/ops/${space}/kernels.inc.
#include \"${header_${source}}\"

namespace lamina::${space} {
${body_${source}}
}  // namespace lamina::${space}
")
      list(APPEND files ${file})
    endforeach()
    list(REMOVE_DUPLICATES ops)
    foreach(op IN LISTS ops)
      set(file ${folder}/${op}_kernels.cc)
      file(CONFIGURE OUTPUT ${file} CONTENT "// Written by CMake from csrc/ops/${space}/kernels.inc.
#include \"ops/${space}/cuda/run.h\"

namespace lamina::${space} {

${declared_${op}}
std::vector<CudaKernel> ${op}_kernels() {
  return {
${listed_${op}}  };
}

}  // namespace lamina::${space}
")
      list(APPEND files ${file})
    endforeach()
  endforeach()
  if(unknown)
    message(FATAL_ERROR "lamina: no kernels.inc has the kernels ${unknown}")
  endif()
  set(${out} ${files} PARENT_SCOPE)
endfunction()
