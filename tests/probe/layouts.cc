// layout: csrc/layout as functions of indices.
#include "layout/fragment.h"
#include "layout/int4.h"
#include "layout/int8_tile.h"
#include "layout/matrix_descriptor.h"
#include "layout/swizzle.h"
#include "probe.h"

namespace lamina::probe {
namespace {

using fragment::At;
using Pair = std::pair<int, int>;

// (row, column) of element e of register i, for registers of 2 or 4 elements.
template <At (*kOf2)(int, int, int), At (*kOf4)(int, int, int)>
Pair at(int per_register, int lane, int i, int e) {
  if (per_register != 2 && per_register != 4)
    throw std::invalid_argument("a register has 2 elements or 4");
  const At found = per_register == 2 ? kOf2(lane, i, e) : kOf4(lane, i, e);
  return {found.row, found.column};
}

template <At (*kOf)(int, int)>
Pair at_pair(int lane, int i) {
  const At found = kOf(lane, i);
  return {found.row, found.column};
}

void add_fragments(py::module_& layout) {
  using namespace fragment;
  layout.def("mma_a", &at<mma_a<2>, mma_a<4>>);
  layout.def("mma_b", &at<mma_b<2>, mma_b<4>>);
  layout.def("wgmma_a", &at<wgmma_a<2>, wgmma_a<4>>);
  layout.def("mma_c", &at_pair<mma_c>);
  layout.def("wgmma_d", &at_pair<wgmma_d>);
  layout.def("ldmatrix", &at_pair<fragment::ldmatrix>);
  layout.def("ldmatrix_trans", &at_pair<fragment::ldmatrix_trans>);
}

// (byte, shift) of a code in its tile.
template <int4::Place (*kPlace)(int, int)>
Pair place(int n, int k) {
  const int4::Place found = kPlace(n, k);
  return {found.byte, found.shift};
}

// (n, k) of the code there.
template <int4::At (*kAt)(int, int)>
Pair code_at(int byte, int shift) {
  const int4::At found = kAt(byte, shift);
  return {found.n, found.k};
}

void add_weights(py::module_& layout) {
  layout.def("int8_tile_offset", &int8_tile::offset);
  layout.def("int8_tile_bytes", &int8_tile::packed_bytes);
  layout.def("int4_bytes", &int4::packed_bytes);
  layout.def("int4_tile_place", &place<int4::tile_place>);
  layout.def("int4_rows_place", &place<int4::rows_place>);
  layout.def("int4_tile_at", &code_at<int4::tile_at>);
  layout.def("int4_rows_at", &code_at<int4::rows_at>);
  layout.def("int4_row_of", &int4::row_of);
  layout.def("int4_feature_of", &int4::feature_of);
  layout.def("int4_s8_k", &int4::s8_k);
}

void add_swizzles(py::module_& layout) {
  layout.def("row_chunk", &swizzle::row_chunk);
  layout.def("half_row_chunk", &swizzle::half_row_chunk);
  layout.def("tile_chunk", &swizzle::tile_chunk);
  layout.def("swizzled", &swizzled);
  py::enum_<Swizzle>(layout, "Swizzle")
      .value("none", Swizzle::kNone)
      .value("b32", Swizzle::k32)
      .value("b64", Swizzle::k64)
      .value("b128", Swizzle::k128)
      .def_property_readonly("row_bytes", &swizzle_bytes);
  using Descriptor = MatrixDescriptor;
  py::class_<Descriptor>(layout, "MatrixDescriptor")
      .def(py::init([](uint32_t address, int leading_bytes, int stride_bytes, Swizzle swizzle,
                       int base_offset) {
             return Descriptor{address, leading_bytes, stride_bytes, swizzle, base_offset};
           }),
           py::arg("address") = 0, py::arg("leading_bytes") = 0, py::arg("stride_bytes") = 0,
           py::arg("swizzle") = Swizzle::kNone, py::arg("base_offset") = 0)
      .def_readonly("address", &Descriptor::address)
      .def_readonly("leading_bytes", &Descriptor::leading_bytes)
      .def_readonly("stride_bytes", &Descriptor::stride_bytes)
      .def_readonly("swizzle", &Descriptor::swizzle)
      .def_readonly("base_offset", &Descriptor::base_offset)
      .def_property_readonly("atom_bytes", &Descriptor::atom_bytes)
      .def_property_readonly("run_bytes", &Descriptor::run_bytes)
      .def("encode", &Descriptor::encode)
      .def_static("decode", &Descriptor::decode)
      .def("k_major", &Descriptor::k_major)
      .def("mn_major", &Descriptor::mn_major);
  layout.def("advance_descriptor", &advance_descriptor);
}

}  // namespace

void add_layouts(py::module_& module) {
  py::module_ layout = module.def_submodule("layout");
  add_weights(layout);
  add_swizzles(layout);
  add_fragments(layout);
}

}  // namespace lamina::probe
