wukong_library(wukong_job_file
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/job_check.cc ${CMAKE_CURRENT_LIST_DIR}/job_file.cc
          ${CMAKE_CURRENT_LIST_DIR}/job_units.cc ${CMAKE_CURRENT_LIST_DIR}/job_yaml.cc
          ${CMAKE_CURRENT_LIST_DIR}/yaml_tree.cc
  DEPS wukong_job_proto wukong_base wukong_sync_presets wukong_optimizer_kinds wukong_codec wukong_data wukong_fault wukong_model_layout wukong_storage yaml-cpp absl::status absl::statusor absl::strings
       absl::str_format ${CMAKE_DL_LIBS}
  COLD)
