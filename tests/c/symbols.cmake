# The core ends no process, starts none, and uses no function that writes without knowing how much room there is.
execute_process(COMMAND ${NM} --undefined-only ${LIBRARY} OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
if(failed OR NOT symbols MATCHES "pread")
  message(FATAL_ERROR "${NM} cannot read ${LIBRARY}")
endif()
string(REGEX MATCHALL
  "[ \n]_?(abort|exit|_exit|quick_exit|__assert_fail|__assert_rtn|raise|kill|system|popen|fork|vfork|exec[vl]p?e?|posix_spawnp?|dlopen|gets|strcpy|strcat|stpcpy|sprintf|vsprintf|scanf|sscanf|strtok|atoi|atol|tmpnam|mktemp|printf|puts|perror|rand|srand|setenv|putenv|signal)\n"
  banned "${symbols}")
if(banned)
  message(FATAL_ERROR "the core uses ${banned}")
endif()
