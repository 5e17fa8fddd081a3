wukong_library(wukong_collective
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/collective.cc ${CMAKE_CURRENT_LIST_DIR}/rendezvous.cc
  DEPS wukong_sync wukong_tls wukong_wire_proto)
target_link_libraries(wukong_collective PRIVATE gloo)
