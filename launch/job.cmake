wukong_library(wukong_job_file
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/job_check.cc ${CMAKE_CURRENT_LIST_DIR}/job_file.cc
          ${CMAKE_CURRENT_LIST_DIR}/job_units.cc ${CMAKE_CURRENT_LIST_DIR}/job_yaml.cc
          ${CMAKE_CURRENT_LIST_DIR}/yaml_tree.cc
  DEPS wukong_job_proto wukong_base wukong_sync_presets wukong_optimizer_kinds wukong_codec wukong_data yaml-cpp absl::status absl::statusor absl::strings
       absl::str_format ${CMAKE_DL_LIBS})
wukong_library(wukong_validate_command
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/validate_command.cc
  DEPS wukong_job_file CLI11::CLI11)

wukong_library(wukong_plan SOURCES ${CMAKE_CURRENT_LIST_DIR}/plan.cc DEPS wukong_job_file wukong_codec wukong_fault wukong_wire_proto)
wukong_library(wukong_plan_command
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/plan_command.cc
  DEPS wukong_job_file wukong_plan CLI11::CLI11 nlohmann_json::nlohmann_json)

wukong_test(job_file_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/job_file_test.cc DEPS wukong_job_file)
wukong_test(job_check_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/job_check_test.cc DEPS wukong_job_file)
wukong_test(scenario_file_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/scenario_file_test.cc DEPS wukong_job_file wukong_sim)
wukong_test(validate_command_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/validate_command_test.cc
  DEPS wukong_validate_command)
wukong_test(plan_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/plan_test.cc DEPS wukong_plan wukong_model_layout)
wukong_test(plan_command_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/plan_command_test.cc DEPS wukong_plan_command)
if(WUKONG_BUILD_TESTS)
  # The examples and the documentation are read from the source tree: they must stay true.
  foreach(test job_file_test job_check_test plan_test plan_command_test scenario_file_test validate_command_test)
    target_compile_definitions(${test} PRIVATE WUKONG_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  endforeach()
endif()
