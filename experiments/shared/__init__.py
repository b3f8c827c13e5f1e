"""What several experiments compute alike.

data        photographs: CIFAR-10, or digits in their place
patches     whitened random patches as features
ridge       ridge regression on features, its ridge by leave-one-out
students    two-layer ReLU students of a teacher, many scales at a time
flows       gradient flow by the Runge-Kutta method, compiled as one loop
training    trainings that a killed run goes on with
vgg         VGG-11, its images and its schedule
own         a network of the reader, from a file
sizes       networks of the same number of parameters
"""
