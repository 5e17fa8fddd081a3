wukong_test(transport_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/can_bind_test.cc ${CMAKE_CURRENT_LIST_DIR}/collective_test.cc ${CMAKE_CURRENT_LIST_DIR}/parameter_server_test.cc ${CMAKE_CURRENT_LIST_DIR}/parent_link_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/striping_test.cc ${CMAKE_CURRENT_LIST_DIR}/tls_test.cc ${CMAKE_CURRENT_LIST_DIR}/tree_test.cc
  DEPS wukong_collective wukong_transport wukong_fault)
if(WUKONG_BUILD_TESTS)
  target_compile_definitions(transport_test PRIVATE WUKONG_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
endif()
