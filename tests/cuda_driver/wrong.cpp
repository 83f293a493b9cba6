// A library that calls itself libcuda and is not.
extern "C" int cuInit(unsigned) { return 0; }
